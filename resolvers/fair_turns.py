"""Turns that go round: who asks for a thousand at once keeps each of the others waiting for one, not for a thousand."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FairTurns:
    """So many of this process have a turn at a time."""

    def __init__(self, at_a_time: int) -> None:
        self._free = at_a_time
        # Those who wait, by caller; the caller who is next comes first. While a turn is free nobody waits.
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def one(self, caller: str) -> AsyncIterator[None]:
        """Wait for a turn. For how long is for the caller to bound: whoever is cancelled waits no more."""
        await self._take(caller)
        try:
            yield
        finally:
            self._give()

    async def _take(self, caller: str) -> None:
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it had come just before
                self._give()
            raise

    def _give(self) -> None:
        while self._waiting:
            caller, turns = self._waiting.popitem(last=False)
            while turns:
                turn = turns.popleft()
                if not turn.done():  # who waited for it may have left
                    if turns:
                        self._waiting[caller] = turns
                    turn.set_result(None)
                    return
        self._free += 1
