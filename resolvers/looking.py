"""Who looks at PostgreSQL for all that is watched in this process: one look at a time, and what is asked for meanwhile
is part of the next.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

from db.beside import beside

log = logging.getLogger(__name__)
# Names of one look; half as many after one that has failed, for they may have been too much for it.
MOST = 1_000
# A look that takes longer has failed, and is tried again after the pause.
SECONDS = 10.0
PAUSE_SECONDS = 1.0


class Looking:
    """Looks by `look`, which is given names, at whatever it is asked to look at."""

    def __init__(self, look: Callable[[Sequence[str]], Awaitable[None]]) -> None:
        self._look = look
        self._most = MOST
        # Names, and who waits for what is found.
        self._due: dict[str, list[asyncio.Future[None]]] = {}
        self._asked = asyncio.Event()

    def soon(self, names: Iterable[str]) -> None:
        """Look at these, for there may be news."""
        for name in names:
            self._due.setdefault(name, [])
        if self._due:
            self._asked.set()

    def ask(self, name: str) -> "asyncio.Future[None]":
        """Done when a look at it has ended that begins after this."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._due.setdefault(name, []).append(waiting)
        self._asked.set()
        return waiting

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with beside(self._work()):
            yield

    async def _work(self) -> None:
        while True:
            await self._asked.wait()
            batch = dict(list(self._due.items())[: self._most])
            for name in batch:
                del self._due[name]
            if not self._due:
                self._asked.clear()
            if await self._done(list(batch)):
                self._most = min(MOST, 2 * self._most)
                for waiting in batch.values():
                    for each in waiting:
                        if not each.done():  # whoever has asked may have left
                            each.set_result(None)
            else:
                self._most = max(1, len(batch) // 2)
                for name, waiting in batch.items():
                    self._due.setdefault(name, []).extend(each for each in waiting if not each.done())
                self._asked.set()
                await asyncio.sleep(PAUSE_SECONDS)

    async def _done(self, names: Sequence[str]) -> bool:
        try:
            async with asyncio.timeout(SECONDS):
                await self._look(names)
        except Exception as error:  # noqa: BLE001  # whatever it was, the next look may succeed
            log.warning("what is watched could not be looked at, and is again in a moment: %s", type(error).__name__)
            return False
        return True
