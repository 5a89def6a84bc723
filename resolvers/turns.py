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
        # By slug, with the number of those who have it or wait for it.
        self._segments: dict[str, tuple[asyncio.Semaphore, int]] = {}

    def of(self, slugs: Collection[str], caller: str) -> "_Turn":
        """For an `async with` block, which begins with a turn at each of the segments, in one order, and one at all.

        Raises Overloaded when too many wait already, or too many of this caller.
        """
        return _Turn(self, sorted(set(slugs)), caller)

    async def _begin(self, slugs: Sequence[str], caller: str, taken: list[asyncio.Semaphore]) -> None:
        self._places.take(caller)
        for slug in slugs:
            turn, users = self._segments.get(slug) or (asyncio.Semaphore(self._of_segment), 0)
            self._segments[slug] = (turn, users + 1)
        try:
            for slug in slugs:
                turn, _ = self._segments[slug]
                await turn.acquire()
                taken.append(turn)
            if self._of_all is not None:
                await self._of_all.acquire()
                taken.append(self._of_all)
        except BaseException:
            self._end(slugs, caller, taken)
            raise

    def _end(self, slugs: Sequence[str], caller: str, taken: list[asyncio.Semaphore]) -> None:
        for turn in taken:
            turn.release()
        for slug in slugs:
            turn, users = self._segments[slug]
            if users == 1:
                del self._segments[slug]
            else:
                self._segments[slug] = (turn, users - 1)
        self._places.give(caller)


class _Turn:
    # A generator that did the same would take several times as long, for each change.
    __slots__ = ("_caller", "_slugs", "_taken", "_turns")

    def __init__(self, turns: Turns, slugs: Sequence[str], caller: str) -> None:
        self._turns, self._slugs, self._caller = turns, slugs, caller
        self._taken: list[asyncio.Semaphore] = []

    async def __aenter__(self) -> None:
        await self._turns._begin(self._slugs, self._caller, self._taken)  # noqa: SLF001  # they are one

    async def __aexit__(self, *_: object) -> None:
        self._turns._end(self._slugs, self._caller, self._taken)  # noqa: SLF001
