"""Memberships as of an instant of the past: exactly what was so then, whatever has happened since."""

import random
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from background import execute
from conftest import Client
from operations import UPDATE, change, create, database_clock, delete, expire, new_key
from sqlalchemy.ext.asyncio import AsyncEngine
from test_rollout_history import at, events, exclude, roll_out, user_within

from db import endings
from db.files import Files
from jobs.purge import Retention, by_hand

AS_OF = """query ($id: ID!, $at: DateTime, $only: [String!], $freshness: Freshness! = CACHED) {
  user(id: $id) { memberships(at: $at, only: $only, freshness: $freshness) {
    segment { slug deletedAt } addedAt expiresAt source } } }"""
MICROSECOND = timedelta(microseconds=1)


async def as_of(client: Client, user_id: str | int, instant: str | datetime | None, **arguments: Any) -> Any:
    instant = at(instant) if isinstance(instant, datetime) else instant
    return (await client.ask(AS_OF, id=user_id, at=instant, **arguments))["user"]["memberships"]


async def slugs_as_of(client: Client, user_id: str | int, instant: str | datetime, **arguments: Any) -> list[str]:
    return [found["segment"]["slug"] for found in await as_of(client, user_id, instant, **arguments)]


def before(instant: str) -> str:
    return at(datetime.fromisoformat(instant) - MICROSECOND)


async def test_each_change_counts_from_its_microsecond_on(client: Client, engine: AsyncEngine) -> None:
    await create(client, "A")
    await change(client, 7, add=["A"])
    await change(client, 7, add=["A"], expiresAt="2090-01-01T00:00:00Z")
    await change(client, 7, remove=["A"])
    await change(client, 7, add=["A"], ttlDays=1)
    added, moved, removed, again = [event["at"] for event in reversed(await events(client, "7"))]
    now = await database_clock(engine)
    first = {"segment": {"slug": "A", "deletedAt": None}, "addedAt": added, "expiresAt": None, "source": "EXPLICIT"}
    second = first | {"expiresAt": "2090-01-01T00:00:00.000000Z"}
    third = first | {"addedAt": again, "expiresAt": at(datetime.fromisoformat(again) + timedelta(days=1))}
    for instant, expected in (
        ("0001-01-01T00:00:00Z", []),
        (before(added), []),
        (added, [first]),
        (before(moved), [first]),
        (moved, [second]),
        (before(removed), [second]),
        (removed, []),
        (before(again), []),
        (again, [third]),
        (at(now), [third]),
    ):
        assert await as_of(client, 7, instant) == expected


async def test_the_expiry_is_the_first_instant_outside(client: Client, engine: AsyncEngine, tmp_path: Path) -> None:
    await create(client, "A")
    await change(client, 7, add=["A"], ttlDays=1)
    await expire(engine, "7", "A", seconds_ago=60)
    expired, added = await events(client, "7")
    for _ in range(2):
        assert await slugs_as_of(client, 7, expired["at"]) == []
        (found,) = await as_of(client, 7, before(expired["at"]))
        assert (found["addedAt"], found["expiresAt"]) == (added["at"], expired["at"])
        files = Files(str(tmp_path / "files"))
        files.prepare()
        await by_hand(engine, files, Retention(24, 7, 30, None))  # it makes no difference
    assert await execute(engine, "SELECT FROM memberships") == []


async def test_segments_that_were_deleted_since_are_there(client: Client, engine: AsyncEngine) -> None:
    await create(client, "A")
    await roll_out(engine, "A", [(await database_clock(engine) - timedelta(hours=1), 1)])
    rolled = user_within(0, 1)
    await change(client, "7", add=["A"])
    deleted = (await delete(client, "A"))["deletedAt"]
    await create(client, "A")
    await change(client, "7", add=["A"])
    added = (await events(client, "7"))[0]["at"]
    for _ in range(2):
        for user in ("7", rolled):
            found = await as_of(client, user, before(deleted))
            assert [each["segment"] for each in found] == [{"slug": "A", "deletedAt": deleted}]
            assert await as_of(client, user, deleted) == []
        assert [each["segment"] for each in await as_of(client, "7", added)] == [{"slug": "A", "deletedAt": None}]
        async with engine.begin() as tx:
            await endings.clean(tx, 1, after="", limit=10)  # nor does this


async def test_a_rollout_counts_as_its_percentage_was(client: Client, engine: AsyncEngine) -> None:
    await create(client, "A")
    now = await database_clock(engine)
    first, second, third, fourth = (now - timedelta(hours=hours) for hours in (4, 3, 2, 1))
    await roll_out(engine, "A", [(first, 100), (second, 5_000), (third, 200), (fourth, 10_000)])
    early, late = user_within(0, 100), user_within(200, 5_000)
    for user, instant, since in (
        (early, first - MICROSECOND, None),
        (early, first, first),
        (early, third, first),
        (early, now, first),
        (late, first, None),
        (late, second, second),
        (late, third - MICROSECOND, second),
        (late, third, None),
        (late, fourth, fourth),
    ):
        found = await as_of(client, user, instant)
        assert [(each["addedAt"], each["expiresAt"], each["source"]) for each in found] == (
            [] if since is None else [(at(since), None, "ROLLOUT")]
        )


async def test_by_hand_wins_over_a_rollout_and_interrupts_nothing(client: Client, engine: AsyncEngine) -> None:
    await create(client, "A")
    now = await database_clock(engine)
    first, out, back = (now - timedelta(hours=hours) for hours in (4, 3, 2))
    await roll_out(engine, "A", [(first, 10_000)])
    await exclude(engine, "7", "A", out, back)
    await change(client, 7, add=["A"], ttlDays=1)
    await expire(engine, "7", "A", seconds_ago=1)
    expired, added = [e["at"] for e in await events(client, "7") if e["source"] == "EXPLICIT"]
    for instant, expected in (
        (at(out - MICROSECOND), (at(first), "ROLLOUT")),
        (at(out), None),
        (at(back - MICROSECOND), None),
        (at(back), (at(first), "ROLLOUT")),
        (before(added), (at(first), "ROLLOUT")),
        (added, (added, "EXPLICIT")),
        (before(expired), (added, "EXPLICIT")),
        (expired, (at(first), "ROLLOUT")),
    ):
        found = [(each["addedAt"], each["source"]) for each in await as_of(client, 7, instant)]
        assert found == ([] if expected is None else [expected])


async def test_they_are_ordered_by_slug_and_narrowed_by_only(client: Client, engine: AsyncEngine) -> None:
    names = ["b", "A", "a-1", "C", "a"]
    await create(client, *names)
    await change(client, 7, add=names)
    instant = (await events(client, "7"))[0]["at"]
    await change(client, 7, remove=names)
    assert await slugs_as_of(client, 7, instant) == sorted(names)
    assert await slugs_as_of(client, 7, instant, freshness="LATEST") == sorted(names)
    assert await slugs_as_of(client, 7, instant, only=["b", "none", "A"]) == ["A", "b"]
    assert await slugs_as_of(client, 7, instant, only=[]) == []


async def test_an_instant_of_which_nothing_is_known_is_refused(client: Client, engine: AsyncEngine) -> None:
    await create(client, "A")
    now = await database_clock(engine)
    month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    # Nothing is older than the months that there are.
    assert await slugs_as_of(client, 7, month - MICROSECOND) == []
    await execute(engine, "UPDATE segments SET created_at = :at", at=month - MICROSECOND)
    assert await slugs_as_of(client, 7, month) == []
    late, early = at(now + timedelta(minutes=1)), at(month - MICROSECOND)
    for instant in (late, early, "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z"):
        answer = await client.post(AS_OF, {"id": 7, "at": instant})
        assert [error["extensions"] for error in answer["errors"]] == [{"code": "BAD_USER_INPUT", "argument": "at"}]


async def test_what_began_in_a_dropped_month_is_there(client: Client, engine: AsyncEngine) -> None:
    names = ["BACK", "EXPIRED", "GONE", "MOVED", "STILL"]
    await create(client, *names)
    await change(client, 7, add=names)
    ((month,),) = await execute(engine, "SELECT date_trunc('month', now(), 'UTC')")
    start = await database_clock(engine)
    # As if their beginnings had been in the month that was dropped, and one had expired.
    await execute(engine, "DELETE FROM membership_events")
    await execute(engine, "UPDATE memberships SET added_at = :at", at=month - timedelta(days=1))
    await execute(engine, "UPDATE segments SET created_at = :at", at=month - timedelta(days=2))
    await change(client, 7, add=["MOVED"], expiresAt="2090-01-01T00:00:00Z")
    await change(client, 7, remove=["BACK", "GONE"])
    await change(client, 7, add=["BACK"])
    expired = await database_clock(engine)
    await execute(
        engine,
        """WITH gone AS (DELETE FROM memberships WHERE segment_id = 2 RETURNING user_id, segment_id)
           INSERT INTO membership_events SELECT user_id, segment_id, 'EXPIRED', :at FROM gone""",
        at=expired,
    )
    now = await database_clock(engine)
    (again,) = [event["at"] for event in await events(client, "7") if event["action"] == "ADDED"]
    began, lost = at(month - timedelta(days=1)), at(month)

    async def found(instant: datetime) -> dict[str, tuple[str, str]]:
        return {
            each["segment"]["slug"]: (each["addedAt"], each["expiresAt"]) for each in await as_of(client, 7, instant)
        }

    assert await found(start) == {
        "BACK": (lost, None),
        "EXPIRED": (lost, at(expired)),
        "GONE": (lost, None),
        "MOVED": (began, None),
        "STILL": (began, None),
    }
    assert await found(now) == {
        "BACK": (again, None),
        "MOVED": (began, "2090-01-01T00:00:00.000000Z"),
        "STILL": (began, None),
    }


async def test_history_folds_to_the_memberships_of_every_instant(client: Client, engine: AsyncEngine) -> None:
    """Of users to whom anything happens, by hand and by rollouts, in any order."""
    users = ["1", "2"]
    await happen(client, engine, random.Random(4), users)
    end = at(await database_clock(engine))
    for user in users:
        now = await as_of(client, user, None)
        assert now == await as_of(client, user, None, freshness="LATEST") == await as_of(client, user, end)
        history = [event for event in reversed(await events(client, user)) if event["at"] <= end]
        assert {event["source"] for event in history} == {"EXPLICIT", "ROLLOUT"}
        for instant in sorted({e["at"] for e in history} | {before(e["at"]) for e in history}):
            found = await as_of(client, user, instant)
            assert {each["segment"]["slug"]: each["source"] for each in found} == folded(history, instant), instant
            for each in found:
                if each["source"] == "EXPLICIT":
                    assert each["addedAt"] == began(history, each["segment"]["slug"], instant)


async def happen(client: Client, engine: AsyncEngine, chance: random.Random, users: list[str]) -> None:
    names = ["A", "B", "C"]
    await create(client, *names)
    await execute(engine, "UPDATE segments SET seed = slug")  # so that chance decides as it did before
    soon = await database_clock(engine)
    for step in range(45):
        user, slug, now = chance.choice(users), chance.choice(names), await database_clock(engine)
        soon = max(soon, now + timedelta(milliseconds=chance.randrange(10, 60)))
        match chance.randrange(6):
            case 0 | 1:
                await change(client, user, add=[slug], **chance.choice(({}, {"expiresAt": at(soon)})))
            case 2:
                await change(client, user, remove=[slug])
            case 3 | 4:
                percent = chance.choice([None, 0, 20.5, 50, 100])
                await client.ask(UPDATE, slug=slug, input={"rolloutPercent": percent}, key=new_key())
            case 5 if step > 30:
                await delete(client, slug)
                await create(client, slug)
    while await database_clock(engine) < soon:
        pass  # what was to expire has


def folded(history: Iterable[Any], instant: str) -> dict[str, str]:
    """Segments with why the user is in; fails when one begins twice, or ends without having begun."""
    inside: dict[str, str] = {}
    for event in history:
        if event["at"] > instant:
            break
        if event["action"] == "ADDED":
            assert event["slug"] not in inside, event
            inside[event["slug"]] = event["source"]
        elif event["action"] == "EXPIRY_CHANGED":
            assert inside[event["slug"]] == "EXPLICIT"
        else:
            assert inside.pop(event["slug"]) == event["source"], event
    return inside


def began(history: Iterable[Any], slug: str, instant: str) -> Any:
    return max(e["at"] for e in history if (e["slug"], e["action"]) == (slug, "ADDED") and e["at"] <= instant)
