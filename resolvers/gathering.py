"""Many callers that ask the same at once: one question for all of them."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import Generic, TypeVar

Found = TypeVar("Found")
Waiting = dict[str, asyncio.Future[Found]]
# Of one command or statement; more are sent in several.
BATCH = 1_000


class Gathering(Generic[Found]):
    """Collects what concurrent callers ask for while the previous batch is under way, and asks for it once."""

    def __init__(self, send: Callable[[Waiting[Found]], Awaitable[None]]) -> None:
        self._send = send
        self._waiting: Waiting[Found] = {}
        self._sender: asyncio.Task[None] | None = None

    async def ask(self, id: str) -> Found:
        answer = self._waiting.get(id)
        if answer is None:
            answer = self._waiting[id] = asyncio.get_running_loop().create_future()
        if self._sender is None:
            self._sender = asyncio.create_task(self._run())
        # Shielded: a caller that is cancelled takes the answer from nobody else.
        return await asyncio.shield(answer)

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch = dict(islice(self._waiting.items(), BATCH))
                for id in batch:
                    del self._waiting[id]
                await settle(batch, self._send(batch))
        finally:
            self._sender = None


async def settle(batch: Waiting[Found], work: Awaitable[None]) -> None:
    """Do the work, and let its failure be the answer of everyone in the batch who has none."""
    try:
        await work
    except Exception as error:  # noqa: BLE001  # it is not handled here: every caller that waits gets it
        for answer in batch.values():
            if not answer.done():
                answer.set_exception(error)
                answer.exception()  # a caller may have left; the failure is not lost with it
    except asyncio.CancelledError:
        for answer in batch.values():
            answer.cancel()
        raise
