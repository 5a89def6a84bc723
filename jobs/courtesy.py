"""Leaving time to requests: while somebody asks, work that can wait goes in small steps and rests between them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

# Of the time that a step took: so at least half of the time is left to others.
REST = 1.0
# With nobody waiting, for those who come just then.
PAUSE_SECONDS = 0.002


async def rest(began: float) -> None:
    """After a step that began then, by `time.monotonic`."""
    await asyncio.sleep((time.monotonic() - began) * REST)


def _nobody() -> bool:
    return False


class Courtesy:
    def __init__(self, anybody: Callable[[], bool] = _nobody) -> None:
        """`anybody` says whether requests are being answered beside the work; a process of its own has none."""
        self._anybody = anybody

    def step(self, alone: int, beside: int) -> int:
        """How much to do at once: the first, or the second beside requests."""
        return beside if self._anybody() else alone

    @asynccontextmanager
    async def resting(self) -> AsyncIterator[None]:
        """A step, and the rest after it."""
        began = time.monotonic()
        yield
        if self._anybody():
            await rest(began)
        else:
            await asyncio.sleep(PAUSE_SECONDS)
