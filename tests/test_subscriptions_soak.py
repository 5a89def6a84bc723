"""A thousand subscribers over two processes, while Redis is killed: what each of them saw, and what they have cost."""

import asyncio
import json
import os
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from breaking import Valkey
from operations import change, create
from serving import Process, server_process
from sqlalchemy.ext.asyncio import AsyncEngine
from subscribing import Socket, socket

from server.embedded import Servers

pytestmark = pytest.mark.soak
SUBSCRIBERS = int(os.environ.get("SOAK_SUBSCRIBERS", "1000"))
CHANGES = 30
QUERY = 'subscription { userChanged(id: 7) { resync events { slug action at } user { isIn(slug: "A") } } }'


@dataclass
class Seen:
    """What one subscriber was told after the beginning."""

    events: list[tuple[str, str]] = field(default_factory=list)
    resyncs: int = 0
    # Whether the user is in the segment, as of the last message.
    is_in: bool = False

    async def follow(self, subscriber: Socket) -> None:
        async for text in subscriber.connection:
            message = json.loads(text)
            assert message["type"] == "next", message
            told = message["payload"]["data"]["userChanged"]
            self.events += [(event["action"], event["at"]) for event in told["events"]]
            self.resyncs += told["resync"]
            self.is_in = told["user"]["isIn"]


@pytest.mark.timeout(600)
async def test_a_thousand_subscribers_miss_nothing_while_redis_is_killed(
    servers: Servers, engine: AsyncEngine, valkey: Valkey, record_property: Callable[[str, Any], None]
) -> None:
    async with (
        server_process(servers.database_url, valkey.url) as one,
        server_process(servers.database_url, valkey.url) as other,
    ):
        await create(one, "A")
        before = max(one.megabytes, other.megabytes)
        sizes: list[float] = []
        for _ in range(3):
            record_property("printed", await one_round(one, other, valkey))
            # Longer than the pause between two looks through the memory.
            await asyncio.sleep(13)
            sizes.append(max(one.megabytes, other.megabytes))
        after = f"after each round, when all had left: {sizes} MB"
        record_property("printed", f"memory of the larger process before the first subscriber: {before} MB; {after}")
        # What the first round has made the processes hold on to serves the next ones, too.
        assert sizes[-1] < sizes[0] + 10


async def one_round(one: Process, other: Process, valkey: Valkey) -> str:
    began = time.monotonic()
    async with AsyncExitStack() as stack:
        seen, following = [], []
        for number in range(SUBSCRIBERS):
            subscriber = await stack.enter_async_context(socket((one, other)[number % 2]))
            await subscriber.subscribe(QUERY)
            assert (await subscriber.next())["userChanged"]["resync"]
            seen.append(Seen())
            following.append(asyncio.create_task(seen[-1].follow(subscriber)))
        opened, size = time.monotonic() - began, max(one.megabytes, other.megabytes)
        slowest = 0.0
        for turn in range(CHANGES):
            if turn == CHANGES // 3:
                valkey.kill()
            if turn == 2 * CHANGES // 3:
                await valkey.start()
            at = time.monotonic()
            payload = await change((one, other)[turn % 2], 7, add=["A"][turn % 2 :], remove=["A"][: turn % 2])
            assert payload["userErrors"] == []
            while not all(len(each.events) == turn + 1 for each in seen):
                assert time.monotonic() - at < 30, [len(each.events) for each in seen]
                await asyncio.sleep(0.01)
            slowest = max(slowest, time.monotonic() - at)
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
    wanted = ["ADDED", "REMOVED"] * (CHANGES // 2)
    assert all([action for action, _ in each.events] == wanted for each in seen)
    assert all(instants == sorted(set(instants)) for each in seen for instants in [[at for _, at in each.events]])
    assert not any(each.resyncs or each.is_in for each in seen)
    return (
        f"{SUBSCRIBERS} subscribers opened in {opened:.1f} s, {size:.0f} MB; each saw {CHANGES} changes once, "
        f"in order; the slowest change took {slowest:.2f} s to reach all"
    )
