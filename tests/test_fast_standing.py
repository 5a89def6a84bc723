"""Who may ask, how much, and what is told of it: the short way knows no favours, and hides nothing."""

import asyncio
import gc
import logging
import re
from collections import Counter
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any

import pytest
import test_logs
from callers import a_token, bearing, revoke
from comparing import Answer, Connection, both, counted, posted
from conftest import Serve
from operations import HISTORY, MEMBERSHIPS, change, create
from prometheus_client import REGISTRY
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine
from test_fast_path import LATEST, body, learned, stopped, users

from db.journal import JOURNAL
from server import known_tokens

SEGMENT = "query Cheap($slug: String!) { segment(slug: $slug) { id } }"
log = test_logs.log  # a fixture
# What each line of the log has for itself.
OWN = frozenset({"timestamp", "duration_ms", "request_id"})
FREE = "query Free { __typename }"


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Of the answers that were asked of plans, how many were given by one."""
    return counted(monkeypatch)


def left(answer: Answer) -> int:
    found = re.search(r";r=(\d+)", answer.header("ratelimit") or "")
    assert found is not None, answer
    return int(found[1])


async def test_points_are_counted_on_either_way_alike(serve: Serve, redis: Redis, planned: Counter[str]) -> None:
    asked = [
        body(id="7"),
        body(SEGMENT, slug="A"),
        body(SEGMENT, slug="\x07"),  # it fails when it is executed, and has been paid for
        body(SEGMENT, slug=None),
        body("query ($ids: [ID!]!) { users(ids: $ids) { memberships { addedAt } } }", ids=["u"] * 101),
        body("query ($ids: [ID!]!) { users(ids: $ids) { memberships { addedAt } } }", ids=["u"] * 100),
        body(HISTORY, id="7", first=100),
    ]
    standings = []
    for fast_path in ("on", "off"):
        await redis.flushall()
        settings = {"rate_limit": 1, "rate_burst": 100_000, "fast_path": fast_path}
        async with serve(**settings) as client, Connection(client) as connection:
            await learned(connection, *asked)
            standings.append([left(await connection.post(each)) for each in asked])
    prices = [[before - after for before, after in pairwise(each)] for each in standings]
    # While they are asked for a point or two may come back.
    assert all(abs(one - other) <= 1 for one, other in zip(*prices, strict=True)), prices
    assert min(prices[0][3:]) > 1
    assert planned == {"plan": 5, "left": 3}


async def test_who_has_no_points_is_told_so_on_either_way_alike(
    serve: Serve, redis: Redis, planned: Counter[str]
) -> None:
    refusals = []
    for fast_path in ("on", "off"):
        await redis.flushall()
        async with serve(rate_limit=1, rate_burst=200, fast_path=fast_path) as client, Connection(client) as connection:
            sent = body("query ($ids: [ID!]!) { users(ids: $ids) { id memberships { addedAt } } }", ids=["u"] * 90)
            answers = [await connection.post(sent) for _ in range(40)]
            refused = [answer for answer in answers if answer.status == 429]
            assert refused
            assert refused == answers[-len(refused) :]
            refusals.append([refused[0], refused[-1]])
    shapes = [[re.sub(rb"\d+", b"N", each.body) for each in either] for either in refusals]
    assert shapes[0] == shapes[1]
    names = [[sorted(name for name, _ in each.headers) for each in either] for either in refusals]
    assert names[0] == names[1]
    assert planned["left"] >= 1


async def test_who_has_paid_with_the_last_point_is_told_what_was_wrong(serve: Serve, redis: Redis) -> None:
    last: list[Any] = []
    for fast_path in ("off", "on"):
        await redis.flushall()
        async with serve(rate_limit=1, rate_burst=200, fast_path=fast_path) as client, Connection(client) as connection:
            (answer, *_) = await learned(connection, body(SEGMENT, slug="A"))
            while left(answer) > 2:
                answer = await connection.post(body(FREE))
            last.append((await connection.post(body(SEGMENT, slug="\x07"))).comparable)
    assert last[0] == last[1]


async def test_a_known_document_is_for_those_who_may_ask(
    serve: Serve, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, planned: Counter[str]
) -> None:
    monkeypatch.setattr(known_tokens, "FRESH_SECONDS", 0.05)
    monkeypatch.setattr(known_tokens, "STALE_SECONDS", 0.1)
    good, gone = await a_token(engine, "read"), await a_token(engine, "write")
    ending = await a_token(engine, "read", seconds=2)
    settings = {"authentication": "required", "login_failures": 10_000}
    async with serve(**settings) as short, serve(fast_path="off", **settings) as long, both(short, long) as asked:
        for token in (good, gone, ending):
            for _ in range(2):
                (found,) = await learned_by(asked[0], token.text)
                assert users(found) == {"segments": []}
        await revoke(engine, gone)
        await asyncio.sleep(2.1)  # it has expired, and what was known of the other is forgotten
        for header in (None, "", "Bearer", "Bearer x", f"Basic {good.text}", good.text, *map(bearer, (gone, ending))):
            answers = [await each.post(body(id="7"), Authorization=header) for each in asked]
            assert [answer.status for answer in answers] == [401, 401], header
            assert answers[0].comparable == answers[1].comparable
        wrong = bearer(good)[:-1] + ("a" if not good.text.endswith("a") else "b")
        assert (await asked[0].post(body(id="7"), Authorization=wrong)).status == 401
        answers = [await each.post(body(id="7"), Authorization=bearer(good)) for each in asked]
        assert answers[0].comparable == answers[1].comparable
        assert users(answers[0]) == {"segments": []}
    assert planned["plan"] >= 1


def bearer(token: Any) -> str:
    return bearing(token)["Authorization"]


async def learned_by(connection: Connection, token: str) -> list[Answer]:
    return [await connection.post(body(id="7"), Authorization=f"Bearer {token}")]


async def test_no_more_are_inside_than_there_are_places(
    serve: Serve, engine: AsyncEngine, planned: Counter[str]
) -> None:
    async with serve(max_concurrent=2) as client, AsyncExitStack() as opened:
        asking = [await opened.enter_async_context(Connection(client)) for _ in range(6)]
        await learned(asking[0], body(LATEST, id="7"), body(LATEST, id="7"))
        planned.clear()
        for late in (False, True):
            async with stopped(engine) as reached:
                request = posted(body(LATEST, id="7"))
                for connection in asking:
                    connection.writer.write(request[:-20] if late else request)
                    await connection.writer.drain()
                if late:
                    await asyncio.sleep(0.05)  # all of them have been looked at
                for connection in asking:
                    connection.writer.write(request[-20:] if late else b"")
                await reached()
                answers = [asyncio.create_task(connection.answer()) for connection in asking]
                done, _ = await asyncio.wait(answers, timeout=0.5)
                assert [each.result().status for each in done] == [503] * 4
            statuses = Counter([(await each).status for each in answers])
            assert statuses == {200: 2, 503: 4}
    assert planned == {"plan": 4}


async def test_the_log_tells_the_same_on_either_way(
    serve: Serve,
    redis: Redis,
    log: test_logs.Captured,  # it is the fixture
    planned: Counter[str],
) -> None:
    many = (
        "query Many($ids: [ID!]!) { users(ids: $ids) { segments(freshness: LATEST) { slug } } tasks { nodes { id } } }"
    )
    asked = [body(MEMBERSHIPS, id="7"), body(many, ids=["1", "2"]), body(HISTORY, id="7"), body(SEGMENT, slug="A")]
    told = []
    for fast_path in ("on", "off"):
        async with serve(fast_path=fast_path, slow_ms=60_000) as client, Connection(client) as connection:
            await learned(connection, *asked)
            await forget_lists(redis)
            log.json.clear()
            await learned(connection, *asked, *asked)
        told.append([{name: each for name, each in line.items() if name not in OWN} for line in log.requests])
    assert len(told[0]) == 8
    assert told[0] == told[1]
    assert planned["plan"] == 8


async def test_metrics_count_the_same_on_either_way(serve: Serve, redis: Redis, planned: Counter[str]) -> None:
    asked = [body(MEMBERSHIPS, id="7"), body(SEGMENT, slug="A"), body(SEGMENT, slug="\x07"), body(id="8")]
    grown = []
    for fast_path in ("on", "off"):
        async with serve(fast_path=fast_path) as client, Connection(client) as connection:
            await learned(connection, *asked)
            await forget_lists(redis)
            before = samples()
            await learned(connection, *asked, *asked)
            after = samples()
        grown.append({name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name)})
    assert grown[0] == grown[1]
    assert planned == {"plan": 6, "left": 3}


async def forget_lists(redis: Redis) -> None:
    """All but the journal: without that what is read next may be stored, or not."""
    await redis.unlink(*[key for key in await redis.keys() if key != JOURNAL])


def samples() -> dict[Any, float]:
    """What is counted, but for how long it took and what goes on beside: lists are stored after the answer."""
    return {
        (each.name, *sorted(each.labels.items())): each.value
        for metric in REGISTRY.collect()
        if metric.name.startswith("segmentql_") and metric.type in ("counter", "histogram")
        for each in metric.samples
        if not each.name.endswith(("_sum", "_bucket", "_created"))
        and "loop" not in each.name
        and "fills" not in each.name
    }


# graphql-core, which answers in the end, awaits nothing beside a field that fails at once.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <coroutine object:pytest.PytestUnraisableExceptionWarning")
async def test_a_field_that_fails_leaves_nothing_at_work_and_nothing_unsaid(
    serve: Serve, engine: AsyncEngine, planned: Counter[str], caplog: pytest.LogCaptureFixture
) -> None:
    query = """query ($first: Int!, $ids: [ID!]!, $slug: String!, $at: DateTime) {
      tasks(first: $first) { nodes { id file { url } } }
      users(ids: $ids) { segments(freshness: LATEST) { slug members(first: $first) { nodes { id } } }
                         memberships(at: $at) { addedAt } history(first: $first) { nodes { at } } }
      segment(slug: $slug) { memberCount { value } } }"""
    right: dict[str, Any] = {"first": 2, "ids": ["1", "2"], "slug": "A"}
    wrong: list[dict[str, Any]] = [
        {"first": 0},
        {"ids": ["1", "\x07"]},
        {"ids": ["1"] * 101},
        {"slug": "\x07"},
        {"at": "2090-01-01T00:00:00Z"},
        {"first": 0, "slug": "\x07", "at": "2090-01-01T00:00:00Z"},
    ]
    async with serve(rate_limit=0) as client, Connection(client) as connection:
        await create(client, "A")
        await change(client, "1", add=["A"])
        await learned(connection, body(query, **right), body(query, **right))
        before = len(asyncio.all_tasks())
        for each in wrong * 3:
            answer = await connection.post(body(query, **right | each))
            assert b'"code":"BAD_USER_INPUT"' in answer.body
        for _ in range(100):
            if len(asyncio.all_tasks()) <= before:
                break
            await asyncio.sleep(0.01)
        assert len(asyncio.all_tasks()) <= before
    gc.collect()
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR] == []
    assert planned == {"plan": 1, "left": 3 * len(wrong)}
