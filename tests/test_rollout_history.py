"""What rollouts begin and end: in history and in reports of named users, though no row tells of it."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from background import execute, lines, report
from conftest import Client, Serve
from operations import UPDATE, change, count, create, database_clock, delete, expire, new_key
from sqlalchemy.ext.asyncio import AsyncEngine

from db import buckets
from db.files import Files
from jobs.purge import Retention, by_hand

SEED = "of-a-test"
HISTORY = """query ($id: ID!, $from: DateTime, $to: DateTime, $first: Int! = 100, $after: String) {
  user(id: $id) { history(from: $from, to: $to, first: $first, after: $after) {
    nodes { slug action at source actor } pageInfo { hasNextPage endCursor } } } }"""
Change = tuple[datetime, int | None]


def user_within(low: int, high: int) -> str:
    """Somebody whom a rollout of `high` basis points takes in, and one of `low` does not."""
    return next(str(number) for number in range(1_000_000) if low <= buckets.bucket(SEED, str(number)) < high)


async def operation(engine: AsyncEngine, client: str) -> int:
    ((operation_id,),) = await execute(
        engine,
        "INSERT INTO operations (client, kind, fingerprint, result) VALUES (:client, '', '', '{}') RETURNING id",
        client=client,
    )
    assert isinstance(operation_id, int)
    return operation_id


async def roll_out(engine: AsyncEngine, slug: str, changes: Sequence[Change]) -> None:
    """As if the segment's rollout had been changed at those instants, by a client named `releases`."""
    operation_id = await operation(engine, "releases")
    for at, rollout in changes:
        await execute(
            engine,
            """INSERT INTO rollout_changes
               SELECT id, :at, CAST(:rollout AS integer), :operation_id FROM segments
               WHERE slug = :slug AND deleted_at IS NULL""",
            at=at,
            rollout=rollout,
            operation_id=operation_id,
            slug=slug,
        )
    await execute(engine, "UPDATE catalogue SET version = version + 1")
    await execute(
        engine,
        """UPDATE segments SET rollout = CAST(:rollout AS integer), seed = :seed,
                  version = (SELECT version FROM catalogue)
           WHERE slug = :slug AND deleted_at IS NULL""",
        rollout=changes[-1][1],
        seed=SEED,
        slug=slug,
    )


async def exclude(engine: AsyncEngine, user_id: str, slug: str, since: datetime, until: datetime | None = None) -> None:
    """As if a client named `support` had removed the user, and somebody had ended that."""
    await execute(
        engine,
        """INSERT INTO exclusions
           SELECT :user_id, id, :since, coalesce(CAST(:until AS timestamptz), 'infinity'), :operation_id
           FROM segments WHERE slug = :slug AND deleted_at IS NULL""",
        user_id=user_id,
        slug=slug,
        since=since,
        until=until,
        operation_id=await operation(engine, "support"),
    )


async def events(client: Client, user_id: str, **arguments: Any) -> Any:
    return (await client.ask(HISTORY, id=user_id, **arguments))["user"]["history"]["nodes"]


async def told(client: Client, user_id: str) -> list[tuple[str, ...]]:
    """What happened, the oldest first."""
    return [(e["action"], e["source"], e["actor"]) for e in reversed(await events(client, user_id))]


def at(instant: datetime) -> str:
    return f"{instant:%Y-%m-%dT%H:%M:%S.%fZ}"


async def test_a_rollout_takes_in_and_leaves_out_when_its_percentage_changes(
    client: Client, engine: AsyncEngine
) -> None:
    await create(client, "A")
    now = await database_clock(engine)
    first, second, third, fourth = (now - timedelta(hours=hours) for hours in (4, 3, 2, 1))
    await roll_out(engine, "A", [(first, 1_000), (second, 5_000), (third, None), (fourth, 2_000)])
    early, late, never = user_within(0, 1_000), user_within(2_000, 5_000), user_within(5_000, 10_000)
    assert [(e["at"], e["action"]) for e in reversed(await events(client, early))] == [
        # Raising it changed nothing for who was in.
        (at(first), "ADDED"),
        (at(third), "REMOVED"),
        (at(fourth), "ADDED"),
    ]
    assert [(e["at"], e["action"]) for e in reversed(await events(client, late))] == [
        (at(second), "ADDED"),
        (at(third), "REMOVED"),
    ]
    assert await told(client, late) == [("ADDED", "ROLLOUT", "releases"), ("REMOVED", "ROLLOUT", "releases")]
    assert await told(client, never) == []
    deleted = await delete(client, "A")
    assert (await events(client, early))[0] == {
        "slug": "A",
        "action": "SEGMENT_DELETED",
        "at": deleted["deletedAt"],
        "source": "ROLLOUT",
        "actor": "anonymous",
    }
    assert len(await events(client, late)) == 2


async def test_changing_the_percentage_is_told_of_whoever_it_concerns(client: Client) -> None:
    await create(client, "A")
    for percent in (100, 0, None, 100):
        answer = await client.ask(UPDATE, slug="A", input={"rolloutPercent": percent}, key=new_key())
        assert answer["updateSegment"]["userErrors"] == []
    await change(client, 7, remove=["A"])
    history = await events(client, "7")
    assert [(e["action"], e["source"], e["actor"]) for e in reversed(history)] == [
        ("ADDED", "ROLLOUT", "anonymous"),
        ("REMOVED", "ROLLOUT", "anonymous"),
    ] * 2
    await change(client, 7, add=["A"])
    assert [(e["action"], e["source"]) for e in await events(client, "7", first=2)] == [
        ("ADDED", "EXPLICIT"),
        ("REMOVED", "ROLLOUT"),
    ]


@pytest.mark.parametrize("rollout", [0, 10_000])
async def test_a_rollout_to_nobody_or_everybody(client: Client, engine: AsyncEngine, rollout: int) -> None:
    await create(client, "A")
    await roll_out(engine, "A", [(await database_clock(engine), rollout)])
    found = [await told(client, user) for user in (user_within(0, 1), user_within(9_999, 10_000))]
    assert found == [[("ADDED", "ROLLOUT", "releases")] if rollout else []] * 2


async def test_beginnings_and_ends_alternate_when_a_user_is_added_by_hand(
    client: Client, engine: AsyncEngine, tmp_path: Path
) -> None:
    await create(client, "A")
    now = await database_clock(engine)
    await roll_out(engine, "A", [(now - timedelta(hours=5), 10_000)])
    await change(client, 7, add=["A"], ttlDays=1)
    assert await told(client, "7") == [
        ("ADDED", "ROLLOUT", "releases"),
        ("REMOVED", "ROLLOUT", "anonymous"),
        ("ADDED", "EXPLICIT", "anonymous"),
    ]
    by_hand_from = (await events(client, "7"))[0]["at"]
    assert (await events(client, "7"))[1]["at"] == by_hand_from
    await expire(engine, "7", "A", seconds_ago=60)
    everything = [
        ("ADDED", "ROLLOUT", "releases"),
        ("REMOVED", "ROLLOUT", "anonymous"),
        ("ADDED", "EXPLICIT", "anonymous"),
        ("EXPIRED", "EXPLICIT", "purge"),
        ("ADDED", "ROLLOUT", "rollout"),
    ]
    assert await told(client, "7") == everything
    before = await events(client, "7")
    assert before[0]["at"] == before[1]["at"]
    files = Files(str(tmp_path / "files"))
    files.prepare()
    assert (await by_hand(engine, files, Retention(24, 7, 30, None)))["memberships"] == 1
    assert await events(client, "7") == before
    await change(client, 7, remove=["A"])
    assert (await told(client, "7"))[5:] == [("REMOVED", "ROLLOUT", "anonymous")]
    await change(client, 7, add=["A"])
    assert (await told(client, "7"))[6:] == [("ADDED", "EXPLICIT", "anonymous")]


async def test_nobody_is_taken_in_while_kept_out_or_after_the_deletion(client: Client, engine: AsyncEngine) -> None:
    await create(client, "A", "B")
    now = await database_clock(engine)
    hours = [now - timedelta(hours=8 - number) for number in range(8)]
    for slug in ("A", "B"):
        await roll_out(engine, slug, [(hours[0], 10_000), (hours[2], None), (hours[4], 10_000)])
    # Kept out before, over and after a change; and of B from before it began.
    await exclude(engine, "7", "A", hours[1], hours[3])
    await exclude(engine, "7", "A", hours[5], hours[6])
    await exclude(engine, "7", "B", hours[0] - timedelta(hours=1))
    found = [(e["slug"], e["action"], e["at"]) for e in reversed(await events(client, "7"))]
    assert found == [
        ("A", "ADDED", at(hours[0])),
        ("A", "REMOVED", at(hours[1])),
        ("A", "ADDED", at(hours[4])),
        ("A", "REMOVED", at(hours[5])),
        ("A", "ADDED", at(hours[6])),
    ]
    await delete(client, "B")
    assert len(await events(client, "7")) == 5
    await delete(client, "A")
    assert [e["action"] for e in await events(client, "7", first=1)] == ["SEGMENT_DELETED"]


async def test_rollouts_are_paged_among_the_others_without_gap_or_repetition(
    client: Client, engine: AsyncEngine
) -> None:
    names = [f"S{number}" for number in range(6)]
    await create(client, *names)
    now = await database_clock(engine)
    for name in names:
        await roll_out(engine, name, [(now - timedelta(hours=3), 10_000)])  # six of one instant
    await change(client, 7, add=names, ttlDays=1)  # and six ends with six begins
    for name in names[:3]:
        await expire(engine, "7", name, seconds_ago=30)
    await delete(client, "S3")
    everything = await events(client, "7")
    assert len(everything) == 6 + 12 + 6 + 1
    assert len({(e["at"], e["action"], e["slug"]) for e in everything}) == len(everything)
    for size in (1, 4, 24, 25):
        found: list[Any] = []
        page: Any = {"pageInfo": {"hasNextPage": True, "endCursor": None}}
        while page["pageInfo"]["hasNextPage"]:
            after = page["pageInfo"]["endCursor"]
            page = (await client.ask(HISTORY, id=7, first=size, after=after))["user"]["history"]
            found += page["nodes"]
        assert found == everything
    since, until = everything[-7]["at"], everything[3]["at"]
    expected = [e for e in everything if since <= e["at"] < until]
    assert await events(client, "7", **{"from": since, "to": until}) == expected != []


async def test_rollouts_are_in_reports_of_named_users_and_stay_the_same(
    serve: Serve, engine: AsyncEngine, tmp_path: Path
) -> None:
    users = [user_within(0, 1_000), user_within(1_000, 9_000), user_within(9_000, 10_000)]
    async with serve() as client:  # nothing tidies
        await create(client, "A", "B", "C")
        now = await database_clock(engine)
        await roll_out(engine, "A", [(now - timedelta(hours=3), 1_000), (now - timedelta(hours=2), 9_000)])
        await roll_out(engine, "B", [(now - timedelta(hours=1), 10_000)])
        for user in users:
            await change(client, user, add=["A", "B", "C"], ttlDays=1)
            await expire(engine, user, "A", 100)
        await delete(client, "B")
        closed = at(await database_clock(engine))
        before = [await events(client, user, to=closed) for user in users]
        assert [len(found) for found in before] == [5 + 4 + 1, 5 + 4 + 1, 2 + 4 + 1]
    told = {(user, e["slug"], e["action"], e["at"]) for user, found in zip(users, before, strict=True) for e in found}
    async with serve(serve_tasks=2) as client:
        named = await report(client, userIds=[*users, users[0]], to=closed)
        assert len(lines(named)) == len(told) == 27
        assert set(lines(named)) == told
        only = lines(await report(client, userIds=users, segments=["A"], to=closed))
        assert only == [line for line in lines(named) if line[1] == "A"]
        # Nobody knows of all users whom a rollout takes in.
        assert len(lines(await report(client, to=closed))) == 3 * (2 + 2 + 1)
        files = Files(str(tmp_path / "files"))
        files.prepare()
        await by_hand(engine, files, Retention(24, 7, 30, None))
        while await execute(engine, "SELECT FROM segments WHERE deleted_at IS NOT NULL AND cleaned_at IS NULL"):
            await asyncio.sleep(0.02)
        assert await count(engine, "memberships") == 3
        assert await report(client, userIds=users, to=closed) == named
        assert [await events(client, user, to=closed) for user in users] == before


async def test_of_dropped_months_nothing_is_told(client: Client, engine: AsyncEngine) -> None:
    await create(client, "OLD", "NEW")
    now = await database_clock(engine)
    month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    for slug in ("OLD", "NEW"):
        await roll_out(engine, slug, [(month - timedelta(days=2), 10_000), (month, None)])
    await execute(engine, "UPDATE segments SET created_at = :at WHERE slug = 'OLD'", at=month - timedelta(days=3))
    found = [(e["slug"], e["action"]) for e in reversed(await events(client, "7"))]
    # The test has made one older than the months that there are, and dropped none.
    assert found == [("NEW", "ADDED"), ("OLD", "REMOVED"), ("NEW", "REMOVED")]
