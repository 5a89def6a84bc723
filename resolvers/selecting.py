"""How reads share statements: so many at a time, and what is asked meanwhile goes into the next one together."""

import asyncio
from collections.abc import Sequence

from db import packed
from db.bare import Pool
from db.packed import Packed
from db.wire import ConnectionLost

# Users of one statement; more are read in several.
BATCH = 1_000


class Selecting:
    def __init__(self, pool: Pool, at_a_time: int) -> None:
        self._pool = pool
        self._free = at_a_time
        # Who waits for a statement, and which users each wants.
        self._waiting: list[tuple[Sequence[str], asyncio.Future[Packed]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def of_users(self, user_ids: Sequence[str]) -> Packed:
        """The memberships of these users, and perhaps of others, as of a moment after the call."""
        if self._free:
            self._free -= 1
            try:
                return await self._select(user_ids)
            finally:
                self._give()
        answer: asyncio.Future[Packed] = asyncio.get_running_loop().create_future()
        self._waiting.append((user_ids, answer))
        return await answer

    def _give(self) -> None:
        """Let those who wait meanwhile have the next statement."""
        if not self._waiting:
            self._free += 1
            return
        task = asyncio.create_task(self._run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        try:
            while self._waiting:
                if batch := self._next():  # who waits may have left
                    await self._answer(batch)
        finally:
            self._free += 1

    def _next(self) -> list[tuple[Sequence[str], "asyncio.Future[Packed]"]]:
        batch: list[tuple[Sequence[str], asyncio.Future[Packed]]] = []
        users = 0
        for user_ids, answer in self._waiting:
            users += len(user_ids)
            if batch and users > BATCH:
                break
            batch.append((user_ids, answer))
        del self._waiting[: len(batch)]
        return [(user_ids, answer) for user_ids, answer in batch if not answer.done()]

    async def _answer(self, batch: list[tuple[Sequence[str], "asyncio.Future[Packed]"]]) -> None:
        user_ids = list({user_id: None for each, _ in batch for user_id in each})
        try:
            found = await self._select(user_ids)
        except Exception as error:  # noqa: BLE001  # it is not handled here: everyone who waits gets it
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
        except asyncio.CancelledError:
            for _, answer in batch:
                answer.cancel()
            raise
        else:
            for _, answer in batch:
                if not answer.done():
                    answer.set_result(found)

    async def _select(self, user_ids: Sequence[str]) -> Packed:
        try:
            return await packed.of_users(self._pool, user_ids)
        except ConnectionLost:
            return await packed.of_users(self._pool, user_ids)  # the server restarted: the pool has no old ones now
