"""How many changes of the same segments are at work at a time: whoever waits for one waits without a connection."""

import asyncio
from collections.abc import Collection, Sequence

from resolvers.places import Places


class Turns:
    """Of this process. While somebody holds a segment, changes of it take some connections and not all."""

    def __init__(self, places: Places, of_segment: int, of_all: int | None = None) -> None:
        self._places = places
        self._of_segment = of_segment
        self._of_all = None if of_all is None else asyncio.Semaphore(of_all)
        # By slug, where anybody has a turn or waits for one.
        self._segments: dict[str, _Segment] = {}

    def of(self, slugs: Collection[str], caller: str) -> "_Turn":
        """For an `async with` block, which begins with a turn at each of the segments, in one order, and one at all.

        Raises Overloaded when too many wait already, or too many of this caller.
        """
        return _Turn(self, sorted(set(slugs)), caller)

    def _join(self, slug: str) -> asyncio.Semaphore | None:
        """What to wait for; None: the turn has come."""
        segment = self._segments.get(slug)
        if segment is None:
            segment = self._segments[slug] = _Segment()
        segment.users += 1
        if segment.users > self._of_segment and segment.turns is None:
            segment.turns = asyncio.Semaphore(0)
        return segment.turns

    def _leave(self, slug: str, *, had_turn: bool) -> None:
        segment = self._segments[slug]
        segment.users -= 1
        if segment.users == 0:
            del self._segments[slug]
        elif had_turn and segment.turns is not None:
            segment.turns.release()


class _Segment:
    # Nearly always nobody has to wait.
    __slots__ = ("turns", "users")

    def __init__(self) -> None:
        # Who has a turn or waits for one.
        self.users = 0
        # From the first on who had to wait; whoever has a turn already gives it back here, too.
        self.turns: asyncio.Semaphore | None = None


class _Turn:
    # A generator that did the same would take several times as long, for each change.
    __slots__ = ("_caller", "_has_one_of_all", "_slugs", "_taken", "_turns")

    def __init__(self, turns: Turns, slugs: Sequence[str], caller: str) -> None:
        self._turns, self._slugs, self._caller = turns, slugs, caller
        self._taken: list[str] = []
        self._has_one_of_all = False

    async def __aenter__(self) -> None:
        turns = self._turns
        turns._places.take(self._caller)  # noqa: SLF001  # they are one
        try:
            for slug in self._slugs:
                queue = turns._join(slug)  # noqa: SLF001
                if queue is not None:
                    await self._wait(queue, slug)
                self._taken.append(slug)
            if turns._of_all is not None:  # noqa: SLF001
                await turns._of_all.acquire()  # noqa: SLF001
                self._has_one_of_all = True
        except BaseException:
            self._end()
            raise

    async def _wait(self, queue: asyncio.Semaphore, slug: str) -> None:
        try:
            await queue.acquire()
        except BaseException:
            self._turns._leave(slug, had_turn=False)  # noqa: SLF001
            raise

    async def __aexit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        turns = self._turns
        if self._has_one_of_all and turns._of_all is not None:  # noqa: SLF001
            turns._of_all.release()  # noqa: SLF001
        for slug in self._taken:
            turns._leave(slug, had_turn=True)  # noqa: SLF001
        turns._places.give(self._caller)  # noqa: SLF001
