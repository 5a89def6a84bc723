"""The change of one user as one statement: what it leaves, what it waits for, and how often it is sent."""

import asyncio
from datetime import datetime
from typing import Any

import pytest
from conftest import Client
from operations import change, count, create, database_clock, differences, history, slugs
from prometheus_client import REGISTRY
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

WAITING = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%change_user_segments%'
"""


async def until_one_waits(engine: AsyncEngine) -> None:
    for _ in range(1_000):
        async with engine.connect() as conn:
            if (await conn.execute(text(WAITING))).scalar_one():
                return
        await asyncio.sleep(0.01)
    raise AssertionError("no change has waited")


@pytest.mark.parametrize(
    ("input", "code"),
    [
        ({"add": ["A"], "remove": ["NONE"]}, "SEGMENT_NOT_FOUND"),
        ({"add": ["A"], "expiresAt": "2001-01-01T00:00:00Z"}, "INVALID"),
        ({"remove": ["A"], "expiresAt": "2001-01-01T00:00:00Z"}, "INVALID"),
    ],
)
async def test_a_refusal_leaves_nothing_not_even_its_key(
    client: Client, engine: AsyncEngine, input: dict[str, Any], code: str
) -> None:
    await create(client, "A")
    before = await count(engine, "operations")
    refused = await change(client, 7, key="the-very-key", **input)
    assert [error["code"] for error in refused["userErrors"]] == [code]
    assert (await count(engine, "operations"), await count(engine, "membership_events")) == (before, 0)
    done = await change(client, 7, add=["A"], key="the-very-key")
    assert (done["added"], done["replayed"]) == (["A"], False)


async def test_a_change_is_one_statement_and_so_is_its_replay(client: Client) -> None:
    await create(client, "A", "B")

    def sent() -> float:
        return sum(
            sample.value
            for metric in REGISTRY.collect()
            for sample in metric.samples
            if sample.name == "segmentql_statements_total"
        )

    query = """mutation ($input: ChangeUserSegmentsInput!) {
      changeUserSegments(input: $input, idempotencyKey: "the-very-key") { added replayed } }"""
    for replayed in (False, True):
        before = sent()
        answer = await client.ask(query, input={"userId": 7, "add": ["A"], "remove": ["B"]})
        assert answer["changeUserSegments"] == {"added": ["A"], "replayed": replayed}
        assert sent() - before == 1


async def test_a_change_waits_for_whoever_changes_the_same_user_whatever_version_that_is(
    client: Client, engine: AsyncEngine
) -> None:
    await create(client, "A")
    async with engine.begin() as tx:
        await tx.execute(text("SELECT pg_advisory_xact_lock(hashtext('memberships'), hashtext('7'))"))
        changing = asyncio.create_task(change(client, 7, add=["A"]))
        await until_one_waits(engine)
        assert (await change(client, 8, add=["A"]))["added"] == ["A"]
        released = await database_clock(engine)
    assert (await changing)["added"] == ["A"]
    [event] = await history(client, 7)
    assert datetime.fromisoformat(event["at"]) >= released


async def test_a_key_that_is_given_up_while_a_change_waits_for_it_is_new(client: Client, engine: AsyncEngine) -> None:
    await create(client, "A", "B")
    await change(client, 7, add=["A"], key="the-very-key")
    async with engine.begin() as tx:
        await tx.execute(text("UPDATE operations SET idempotency_key = NULL WHERE idempotency_key = 'the-very-key'"))
        changing = asyncio.create_task(change(client, 7, add=["B"], key="the-very-key"))
        await until_one_waits(engine)
    done = await changing
    assert (done["added"], done["replayed"]) == (["B"], False)


async def test_lists_are_answered_in_the_order_they_were_sent_in(client: Client, engine: AsyncEngine) -> None:
    names = [f"S{number * 77 % 120:03}" for number in range(120)]
    await create(client, *sorted(names))
    await change(client, 7, add=names[:60])
    await change(client, 7, add=names[:20], ttlDays=5)
    done = await change(client, 7, add=[*names[40:], *names[40:]], remove=names[:40])
    assert (done["added"], done["removed"]) == (names[60:], names[:40])
    assert (done["updated"], done["unchanged"]) == ([], names[40:60])
    again = await change(client, 7, add=names[::-1], ttlDays=1)
    assert (again["added"], again["updated"]) == (names[39::-1], names[:39:-1])
    assert await slugs(client, 7) == sorted(names)
    assert await differences(engine) == []
