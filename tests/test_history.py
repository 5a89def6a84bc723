"""History: every begin, change and end, in order, whatever the jobs have tidied."""

from typing import Any

import pytest
from conftest import Client
from operations import HISTORY, change, create, delete, differences, expire, history
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine


async def test_a_deletion_ends_every_membership_at_its_instant_in_the_history(
    client: Client, engine: AsyncEngine
) -> None:
    await create(client, "A", "B")
    await change(client, 7, add=["A", "B"], ttlDays=1)
    await expire(engine, "7", "B", seconds_ago=60)
    deleted = await delete(client, "A")
    await delete(client, "B")
    events = await history(client, 7)
    assert [(event["action"], event["slug"], event["actor"], event["expiresAt"] is None) for event in events] == [
        ("SEGMENT_DELETED", "A", "anonymous", True),
        ("ADDED", "A", "anonymous", False),
        # It had ended before its segment did.
        ("EXPIRED", "B", "purge", True),
        ("ADDED", "B", "anonymous", False),
    ]
    assert events[0]["at"] == deleted["deletedAt"]


async def test_a_slug_created_again_is_another_segment_in_the_history(client: Client) -> None:
    await create(client, "A")
    await change(client, 7, add=["A"])
    await delete(client, "A")
    await create(client, "A")
    await change(client, 7, add=["A"])
    assert [event["action"] for event in await history(client, 7)] == ["ADDED", "SEGMENT_DELETED", "ADDED"]


async def test_history_is_paged_newest_first_without_gap_or_repetition(client: Client, engine: AsyncEngine) -> None:
    names = [f"S{number}" for number in range(9)]
    await create(client, *names)
    await change(client, 7, add=names, ttlDays=1)  # nine events of one instant
    for name in names[:4]:
        await expire(engine, "7", name, seconds_ago=30)
    await change(client, 7, remove=names[5:])
    await delete(client, names[4])
    everything = await history(client, 7, first=100)
    assert len(everything) == 9 + 4 + 4 + 1
    assert [e["at"] for e in everything] == sorted((e["at"] for e in everything), reverse=True)
    for size in (1, 2, 5, 17, 18):
        assert await _all_pages(client, size) == everything


async def _all_pages(client: Client, size: int) -> list[Any]:
    found: list[Any] = []
    after = None
    while True:
        page = (await client.ask(HISTORY, id=7, first=size, after=after))["user"]["history"]
        found += page["nodes"]
        assert page["pageInfo"]["hasPreviousPage"] is (after is not None)
        assert [edge["node"]["slug"] for edge in page["edges"]] == [node["slug"] for node in page["nodes"]]
        if not page["pageInfo"]["hasNextPage"]:
            return found
        assert len(page["nodes"]) == size
        after = page["pageInfo"]["endCursor"]


async def test_the_period_begins_with_from_and_ends_before_to(client: Client, engine: AsyncEngine) -> None:
    await create(client, "A", "B")
    await change(client, 7, add=["A"])
    await change(client, 7, add=["B"], ttlDays=1)
    await expire(engine, "7", "B", seconds_ago=1)
    expired, added_a, added_b = await history(client, 7)
    if added_a["at"] < added_b["at"]:
        added_a, added_b = added_b, added_a
    assert await history(client, 7, **{"from": expired["at"]}) == [
        e for e in await history(client, 7) if e["at"] >= expired["at"]
    ]
    assert expired not in await history(client, 7, to=expired["at"])
    assert await history(client, 7, **{"from": added_b["at"], "to": added_a["at"]}) == [
        e for e in await history(client, 7) if added_b["at"] <= e["at"] < added_a["at"]
    ]
    assert await history(client, 7, to="2001-01-01T00:00:00Z") == []
    assert await history(client, 7, **{"from": "0001-01-01T00:00:00Z", "to": "9999-12-31T23:59:59Z"}) == (
        await history(client, 7)
    )


async def test_a_period_that_ends_before_it_begins_is_refused(client: Client) -> None:
    instant = "2026-01-01T00:00:00Z"
    answer = await client.post(HISTORY, {"id": 7, "from": instant, "to": instant})
    assert answer["errors"][0]["extensions"] == {"code": "BAD_USER_INPUT", "argument": "to"}


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "WyJzZWdtZW50IiwiQSIsMV0=",  # of a list of segments
        "WyJldmVudCIsMSwiTk9ORSIsMV0=",  # no such action
        "WyJldmVudCIsOTAwMDAwMDAwMDAwMDAwMDAwMCwiQURERUQiLDFd",  # beyond the calendar
        "WyJldmVudCIsMSwiQURERUQiLC0xXQ==",  # no such id
        "WyJldmVudCIsdHJ1ZSwiQURERUQiLDFd",  # true is not a number
    ],
)
async def test_a_cursor_of_another_making_is_refused(client: Client, cursor: str) -> None:
    answer = await client.post(HISTORY, {"id": 7, "after": cursor})
    assert answer["errors"][0]["extensions"] == {"code": "BAD_USER_INPUT", "argument": "after"}


async def test_an_event_comes_after_those_that_a_faster_clock_has_dated(client: Client, engine: AsyncEngine) -> None:
    """The clock of a new primary may lag behind the old one's."""
    await create(client, "A")
    await change(client, 7, add=["A"])
    async with engine.begin() as tx:
        await tx.execute(text("UPDATE membership_events SET at = at + interval '1 hour'"))
        await tx.execute(text("UPDATE memberships SET added_at = added_at + interval '1 hour'"))
    await change(client, 7, remove=["A"])
    await change(client, 7, add=["A"])
    events = await history(client, 7)
    assert [event["action"] for event in events] == ["ADDED", "REMOVED", "ADDED"]
    assert len({event["at"] for event in events}) == 3
    assert await differences(engine) == []
