"""How many changes of the same segments are at work at a time: whoever waits for one waits without a connection."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from resolvers.places import Places


class Turns:
    """Of this process. While somebody holds a segment, changes of it take some connections and not all."""

    def __init__(self, places: Places, of_segment: int, of_all: int | None = None) -> None:
        self._places = places
        self._of_segment = of_segment
        self._of_all = None if of_all is None else asyncio.Semaphore(of_all)
        # By slug, with the number of those who have it or wait for it.
        self._segments: dict[str, tuple[asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def of(self, slugs: Collection[str], caller: str) -> AsyncIterator[None]:
        """Wait for a turn at each of the segments, in one order, and then for one at all.

        Raises Overloaded when too many wait already, or too many of this caller.
        """
        self._places.take(caller)
        taken: list[asyncio.Semaphore] = []
        ordered = sorted(set(slugs))
        for slug in ordered:
            turn, users = self._segments.get(slug) or (asyncio.Semaphore(self._of_segment), 0)
            self._segments[slug] = (turn, users + 1)
        try:
            for slug in ordered:
                turn, _ = self._segments[slug]
                await turn.acquire()
                taken.append(turn)
            if self._of_all is None:
                yield
            else:
                async with self._of_all:
                    yield
        finally:
            for turn in taken:
                turn.release()
            for slug in ordered:
                turn, users = self._segments[slug]
                if users == 1:
                    del self._segments[slug]
                else:
                    self._segments[slug] = (turn, users - 1)
            self._places.give(caller)
