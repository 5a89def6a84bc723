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
# What one of them may take of its process, in KB, with what is made of its messages; 49 were measured.
MOST_KB = 56
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
        before = larger(one, other)
        await one_subscriber(one)
        await one_subscriber(other)
        after_one = larger(one, other)
        with_all: list[float] = []
        after_all: list[float] = []
        for _ in range(3):
            told, size = await one_round(one, other, valkey)
            record_property("printed", told)
            with_all.append(size)
            # Longer than the pause between two looks through the memory.
            await asyncio.sleep(13)
            after_all.append(larger(one, other))
        record_property(
            "printed",
            f"the larger process: {before:.0f} MB before the first subscriber, {after_one:.0f} when it had left; "
            f"{_listed(with_all)} with all of them in each round, {_listed(after_all)} when they had left",
        )
        # What comes once, whoever is the first to subscribe.
        assert after_one < before + 3
        # What a subscriber takes.
        assert (with_all[0] - before) / (SUBSCRIBERS / 2) < MOST_KB / 1024
        # Nothing is left of a round but room, which the next one takes: none is larger than the first.
        assert max(with_all) < with_all[0] + 5
        assert max(after_all) < after_all[0] + 5
        # And some of that is given back.
        assert max(after_all) < max(with_all)


def larger(*processes: Process) -> float:
    return max(process.megabytes for process in processes)


def _listed(sizes: list[float]) -> str:
    return ", ".join(f"{size:.0f}" for size in sizes)


async def one_subscriber(process: Process) -> None:
    """Comes, is told of two changes, and leaves."""
    async with socket(process) as subscriber:
        await subscriber.subscribe(QUERY)
        assert (await subscriber.next())["userChanged"]["resync"]
        for added in (["A"], []):
            await change(process, 7, add=added, remove=[] if added else ["A"])
            assert (await subscriber.next())["userChanged"]["user"]["isIn"] is bool(added)


async def one_round(one: Process, other: Process, valkey: Valkey) -> tuple[str, float]:
    """What was seen, and how large the larger process was with all subscribers."""
    began = time.monotonic()
    async with AsyncExitStack() as stack:
        seen, following = [], []
        for number in range(SUBSCRIBERS):
            subscriber = await stack.enter_async_context(socket((one, other)[number % 2]))
            await subscriber.subscribe(QUERY)
            assert (await subscriber.next())["userChanged"]["resync"]
            seen.append(Seen())
            following.append(asyncio.create_task(seen[-1].follow(subscriber)))
        opened = time.monotonic() - began
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
        size = larger(one, other)
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
    wanted = ["ADDED", "REMOVED"] * (CHANGES // 2)
    assert all([action for action, _ in each.events] == wanted for each in seen)
    assert all(instants == sorted(set(instants)) for each in seen for instants in [[at for _, at in each.events]])
    assert not any(each.resyncs or each.is_in for each in seen)
    told = (
        f"{SUBSCRIBERS} subscribers opened in {opened:.1f} s; each saw {CHANGES} changes once, in order; "
        f"the slowest change took {slowest:.2f} s to reach all"
    )
    return told, size
