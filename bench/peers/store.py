"""Lists of users for the peers in Python: what is asked for at one instant is one MGET; what is missing, one SELECT."""

import asyncio
import os
import random
import time
from pathlib import Path
from typing import Any

import asyncpg
import orjson
from redis.asyncio import Redis

LISTS = Path(__file__).with_name("lists.sql").read_text()
KEY = "peer:"
TTL_SECONDS = 50
CONNECTIONS = 6
# Slug, since, until, and until in milliseconds; without end the last two are None.
Entry = tuple[str, str, str | None, int | None]


def ttl() -> int:
    """Seconds, a tenth more or less: what was stored together does not end together."""
    return round(TTL_SECONDS * random.uniform(0.9, 1.1))


def active(text: bytes | str) -> list[Entry]:
    now = time.time() * 1000
    found: list[Entry] = orjson.loads(text)
    return [entry for entry in found if entry[3] is None or entry[3] > now]


class Lists:
    """Of every user; may only be asked where a loop runs."""

    def __init__(self) -> None:
        self.redis = Redis(unix_socket_path=os.environ["PEER_REDIS"], max_connections=64)
        self._pool: Any = None
        self._connecting = asyncio.Lock()
        self._waiting: dict[str, asyncio.Future[list[Entry]]] = {}
        self._reading: set[asyncio.Task[None]] = set()

    def of(self, user_id: str) -> asyncio.Future[list[Entry]]:
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._read)
        found = self._waiting.get(user_id)
        if found is None:
            found = self._waiting[user_id] = loop.create_future()
        return found

    def _read(self) -> None:
        waiting, self._waiting = self._waiting, {}
        task = asyncio.get_running_loop().create_task(self._answer(waiting))
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)

    async def _answer(self, waiting: dict[str, asyncio.Future[list[Entry]]]) -> None:
        missing = []
        kept = await self.redis.mget([KEY + user_id for user_id in waiting])
        for (user_id, future), text in zip(waiting.items(), kept, strict=True):
            if text is None:
                missing.append(user_id)
            else:
                future.set_result(active(text))
        if missing:
            texts = await self.fetched(missing)
            for user_id in missing:
                waiting[user_id].set_result(active(texts[user_id]))
            await self._keep(texts)

    async def fetched(self, user_ids: list[str]) -> dict[str, str]:
        async with self._connecting:
            self._pool = self._pool or await asyncpg.create_pool(min_size=CONNECTIONS, max_size=CONNECTIONS)
        rows = await self._pool.fetch(LISTS, user_ids)
        return dict.fromkeys(user_ids, "[]") | dict(rows)

    async def _keep(self, texts: dict[str, str]) -> None:
        async with self.redis.pipeline(transaction=False) as pipe:
            for user_id, text in texts.items():
                pipe.set(KEY + user_id, text, ex=ttl())
            await pipe.execute()
