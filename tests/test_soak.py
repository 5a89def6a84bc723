"""Minutes of racing and breaking, over real server processes; `make soak` runs it and prints what it measured."""

import asyncio
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from breaking import Valkey
from conftest import Client
from operations import CHANGE, MEMBERSHIPS, change, create, delete, differences, generation
from redis.asyncio import Redis
from serving import Process, server_process
from sqlalchemy.ext.asyncio import AsyncEngine
from wire import Wire

from db.cache import Cache
from server.embedded import Servers

pytestmark = pytest.mark.soak
ROUNDS = int(os.environ.get("SOAK_ROUNDS", "10000"))
REQUESTS = int(os.environ.get("SOAK_REQUESTS", "100000"))
SECONDS = int(os.environ.get("SOAK_SECONDS", "60"))


@pytest.fixture
async def two(servers: Servers, engine: AsyncEngine, redis: Redis) -> AsyncIterator[tuple[Process, Process]]:
    """Two server processes on one database and one Redis."""
    async with (
        server_process(servers.database_url, servers.redis_url) as one,
        server_process(servers.database_url, servers.redis_url) as other,
    ):
        yield one, other


def expiry(number: int) -> str:
    """An expiry that tells which change a membership is of."""
    return f"2090-01-01T{number // 3600:02}:{number // 60 % 60:02}:{number % 60:02}.000000Z"


async def seen(client: Client, user_id: str) -> str | None:
    found = (await client.ask(MEMBERSHIPS, id=user_id))["user"]["memberships"]
    return found[0]["expiresAt"] if found else None


async def test_no_read_that_began_after_an_acknowledgement_misses_the_change(two: tuple[Process, Process]) -> None:
    await create(two[0], "A")
    acknowledged, stop, missed, reads = expiry(0), asyncio.Event(), 0, 0
    await change(two[0], 7, add=["A"], expiresAt=acknowledged)

    async def read(client: Client) -> None:
        nonlocal missed, reads
        while not stop.is_set():
            at_least = acknowledged
            found = await seen(client, "7")
            reads += 1
            missed += found is None or found < at_least

    readers = [asyncio.create_task(read(client)) for client in two]
    began = time.monotonic()
    for number in range(1, ROUNDS + 1):
        payload = await change(two[number % 2], 7, add=["A"], expiresAt=expiry(number))
        assert payload["updated"] == ["A"]
        acknowledged = expiry(number)
    stop.set()
    await asyncio.gather(*readers)
    print(
        f"\n{ROUNDS} changes and {reads} racing reads over two processes in {time.monotonic() - began:.0f} s: ", end=""
    )
    print(f"{missed} reads missed a change")
    assert missed == 0


async def test_nor_with_a_fill_delayed_over_the_commit(
    two: tuple[Process, Process], servers: Servers, redis: Redis
) -> None:
    await create(two[0], "A")
    await change(two[0], 7, add=["A"], expiresAt=expiry(0))
    await seen(two[0], "7")
    counting = await generation(redis)
    slow, missed, accepted, delayed = Cache(servers.redis_url, budget_ms=5_000), 0, 0, 0
    async with slow.running():
        for number in range(1, ROUNDS + 1):
            await redis.unlink("segmentql:user:7")
            entry = await slow.entry()
            stale = b"" if number % 2 else b"\x00\x00\x00\x01" + b"\x00" * 8 + b"\x7f" * 8
            await change(two[number % 2], 7, add=["A"], expiresAt=expiry(number))
            if entry is not None:
                delayed += 1
                accepted += await slow.fill(entry, counting, {"7": stale})
            for client in two:
                missed += await seen(client, "7") != expiry(number)
    print(f"\n{delayed} fills delayed over a commit: {accepted} accepted, {missed} reads missed the change")
    assert (missed, accepted) == (0, 0)
    assert delayed > ROUNDS // 2


@dataclass
class Findings:
    reads: int = 0
    wrong_reads: int = 0
    mutations: int = 0
    failed_mutations: int = 0
    slowest_read: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)


async def test_redis_killed_frozen_and_flushed_under_load_costs_no_read_and_no_mutation(
    servers: Servers, engine: AsyncEngine, tmp_path: Path
) -> None:
    valkey, findings = Valkey(tmp_path), Findings()
    await valkey.start()
    async with (
        server_process(servers.database_url, valkey.url) as one,
        server_process(servers.database_url, valkey.url) as other,
    ):
        await create(one, "A", "B")
        ending = time.monotonic() + SECONDS
        users = [asyncio.create_task(_use((one, other), f"u{n}", ending, findings)) for n in range(6)]
        segments = asyncio.create_task(_use_segments((one, other), ending, findings))
        while time.monotonic() < ending:
            await _strike(valkey, findings)
        await asyncio.gather(*users, segments)
    await valkey.end()
    print(f"\n{findings}")
    assert (findings.wrong_reads, findings.failed_mutations) == (0, 0)
    assert findings.slowest_read < 0.5
    assert await differences(engine) == []


async def _strike(valkey: Valkey, findings: Findings) -> None:
    fault = random.choice(["kill", "freeze", "flush", "blink"])
    findings.faults[fault] += 1
    if fault == "kill":
        valkey.kill()
        await asyncio.sleep(random.uniform(0, 1.5))
        await valkey.start()
    elif fault == "flush":
        await valkey.client.flushall()
    else:
        valkey.freeze()
        await asyncio.sleep(random.uniform(0.5, 2) if fault == "freeze" else random.uniform(0, 0.1))
        valkey.thaw()
    await asyncio.sleep(random.uniform(0, 1))


async def _use(clients: tuple[Client, Client], user_id: str, ending: float, findings: Findings) -> None:
    """Change a user, and see on both processes that the change is there."""
    for number in itertools.count():
        if time.monotonic() > ending:
            return
        member = number % 3 != 2
        input = {"add": ["A"], "expiresAt": expiry(number % 80_000)} if member else {"remove": ["A"]}
        variables = {"input": {"userId": user_id, **input}, "key": f"{user_id}-key-{number}"}
        answer = await clients[number % 2].post(CHANGE, variables)
        findings.mutations += 1
        if "errors" in answer or answer["data"]["changeUserSegments"]["userErrors"]:
            findings.failed_mutations += 1
            continue
        for client in clients:
            found = await _timed(lambda client=client: seen(client, user_id), findings)  # type: ignore[misc]
            findings.wrong_reads += found != (input.get("expiresAt") if member else None)


async def _use_segments(clients: tuple[Client, Client], ending: float, findings: Findings) -> None:
    """Delete a segment that is cached on both processes, and see that it is gone from both."""
    for number in itertools.count():
        if time.monotonic() > ending:
            return
        slug = f"S{number}"
        await create(clients[number % 2], slug)
        await change(clients[number % 2], "segments", add=[slug])
        for client in clients:
            found = await _timed(lambda client=client: seen(client, "segments"), findings)  # type: ignore[misc]
            assert found is None  # it does not expire
        await delete(clients[number % 2], slug)
        findings.mutations += 3
        for client in clients:
            answer = await client.ask('{ user(id: "segments") { segments { slug } } }')
            findings.reads += 1
            findings.wrong_reads += answer["user"]["segments"] != []


async def _timed(read: Callable[[], Awaitable[Any]], findings: Findings) -> Any:
    began = time.monotonic()
    found = await read()
    findings.reads += 1
    findings.slowest_read = max(findings.slowest_read, time.monotonic() - began)
    return found


async def test_a_serving_process_stays_below_150_mb_after_100_000_requests(
    servers: Servers, engine: AsyncEngine, redis: Redis
) -> None:
    async with server_process(servers.database_url, servers.redis_url) as server:
        names = [f"S{n}" for n in range(50)]
        await create(server, *names)
        for user in range(200):
            await change(server, user, add=random.sample(names, 8))
        before, began = server.megabytes, time.monotonic()
        numbers = iter(range(REQUESTS))
        await asyncio.gather(*(_ask_all(server, numbers) for _ in range(24)))
        after = server.megabytes
        seconds = time.monotonic() - began
    print(f"\n{REQUESTS} requests in {seconds:.0f} s: {before:.0f} MB before, {after:.0f} MB after")
    assert after < 150


async def _ask_all(server: Process, numbers: Iterator[int]) -> None:
    async with Wire(server) as wire:
        for number in numbers:
            # Two hundred documents, and one with variables that is sent by far most often, as by a front end.
            if number % 10:
                await wire.ask(MEMBERSHIPS, {"id": number % 5_000})
            else:
                await wire.ask(f"query Q{number % 2_000} {{ user(id: {number % 300}) {{ segments {{ slug }} }} }}")
