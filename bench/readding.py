"""Users who are put back, all the time, into segments that they have just dropped out of."""

import asyncio
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bench.client import CHANGE, Client, key
from bench.wire import Wire

CONNECTIONS = 6
UNTIL = "2090-01-01T00:00:00.000000Z"


@dataclass(slots=True)
class Readded:
    # User and segment; whoever is here was told so.
    acknowledged: list[tuple[str, str]] = field(default_factory=list)
    refused: list[Any] = field(default_factory=list)


@contextmanager
def going_on(client: Client, expired: list[tuple[str, str]]) -> Iterator[Readded]:
    """Re-add for as long as the block lasts: some in the order in which they expired, others from anywhere."""
    readded, ended = Readded(), threading.Event()
    left = dict.fromkeys(expired)
    ordered = iter(expired)
    shuffled = iter(random.sample(expired, len(expired)))

    async def readd(those: Iterator[tuple[str, str]]) -> None:
        async with Wire(client.host, client.port) as wire:
            for who in those:
                if ended.is_set():
                    return
                if who not in left:
                    continue
                del left[who]
                user_id, slug = who
                input = {"userId": user_id, "add": [slug], "expiresAt": UNTIL}
                payload = (await wire.ask(CHANGE, {"input": input, "key": key()}))["changeUserSegments"]
                if payload["added"] == [slug]:
                    readded.acknowledged.append(who)
                else:
                    readded.refused.append(payload)

    async def readd_all() -> None:
        await asyncio.gather(*(readd((ordered, shuffled)[number % 2]) for number in range(CONNECTIONS)))

    thread = threading.Thread(target=asyncio.run, args=[readd_all()])
    thread.start()
    try:
        yield readded
    finally:
        ended.set()
        thread.join()
