"""`segmentql load-demo`: a year that never was, and that nothing tells from one that was."""

import asyncio
import dataclasses
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import forking
import pytest
from background import verified
from conftest import ROOT, Serve
from databases import query, sql
from operations import history, memberships
from sqlalchemy.exc import DBAPIError

from db import demo as writing
from server import demo
from server.demo_segments import PLANS
from server.demo_year import DAYS, Year
from server.settings import Settings, StartError

USERS = 1_000
TABLES = ("segments", "rollout_changes", "memberships", "membership_events", "operations", "exclusions")
PARTITIONS = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'membership_events'::regclass"
LIVE = """query ($deleted: Boolean!) {
  segments(first: 100, filter: {deleted: $deleted}) { nodes { slug description createdAt } } }"""
ENDS = ("REMOVED", "EXPIRED", "SEGMENT_DELETED")


@pytest.fixture
def place(settings: Settings, prepared_url: str) -> Settings:
    """The settings for a database of the test's own."""
    return dataclasses.replace(settings, database_url=prepared_url)


async def rows(place: Settings, statement: str) -> list[tuple[Any, ...]]:
    assert place.database_url is not None
    return await query(place.database_url, statement)


async def counts(place: Settings) -> dict[str, int]:
    return {table: (await rows(place, f"SELECT count(*) FROM {table}"))[0][0] for table in TABLES}


async def test_what_is_loaded_fits_together_and_a_second_load_changes_nothing(place: Settings, tmp_path: Path) -> None:
    loaded = await demo.load(place, USERS)
    assert place.database_url is not None
    assert await verified(place.database_url, tmp_path) == []
    found = await counts(place)
    assert (found["segments"], found["memberships"], found["membership_events"]) == (
        loaded.segments,
        loaded.memberships,
        loaded.events,
    )
    assert (loaded.segments, loaded.users, found["exclusions"]) == (50, USERS, 0)
    assert loaded.events > 3 * USERS
    version = await rows(place, "SELECT version FROM catalogue")
    with pytest.raises(StartError, match="only fills an empty one"):
        await demo.load(place, USERS)
    assert await counts(place) == found
    assert await rows(place, "SELECT version FROM catalogue") == version


async def test_it_looks_like_a_year_of_use(place: Settings) -> None:
    await demo.load(place, USERS)
    ((first, last, now),) = await rows(place, "SELECT min(at), max(at), now() FROM operations")
    assert timedelta(days=DAYS - 3) < now - first < timedelta(days=DAYS + 1)
    assert timedelta(0) < now - last < timedelta(days=3)
    # The ids of operations follow time, as in life.
    assert await rows(
        place, "SELECT bool_and(a.at <= b.at) FROM operations a JOIN operations b ON b.id = a.id + 1"
    ) == [(True,)]
    kinds = await rows(place, "SELECT DISTINCT action::text FROM membership_events ORDER BY action")
    assert len(kinds) == 5
    clients = await rows(place, "SELECT DISTINCT client FROM operations")
    assert {"growth-batch", "support", "crm"} < {client for (client,) in clients}
    # Some come back.
    again = await rows(
        place,
        """SELECT user_id FROM membership_events WHERE action = 'ADDED'
           GROUP BY user_id, segment_id HAVING count(*) > 1""",
    )
    assert again
    by_day = await rows(
        place, "SELECT extract(isodow FROM at)::int, count(*) FROM operations GROUP BY 1 ORDER BY count(*) DESC"
    )
    assert {day for day, _ in by_day[-2:]} == {6, 7}


async def test_rollouts_have_their_history(place: Settings) -> None:
    await demo.load(place, USERS)
    last = await rows(
        place,
        """SELECT s.slug FROM segments AS s JOIN LATERAL (
               SELECT c.rollout, o.kind, o.result, c.at >= s.created_at AND c.at = o.at AS dated
               FROM rollout_changes AS c JOIN operations AS o ON o.id = c.operation_id
               WHERE c.segment_id = s.id ORDER BY c.at DESC LIMIT 1
           ) AS last ON true
           WHERE last.rollout IS NOT DISTINCT FROM s.rollout AND last.dated
             AND last.result = jsonb_build_object('segment_id', s.id)""",
    )
    assert {slug for (slug,) in last} == {plan.slug for plan in PLANS if plan.rollouts}
    ((changes, created),) = await rows(
        place,
        """SELECT count(*), count(*) FILTER (WHERE kind = 'createSegment')
           FROM rollout_changes JOIN operations ON id = operation_id""",
    )
    assert (changes, created) == (sum(len(plan.rollouts) for plan in PLANS), 1)


async def test_a_running_server_shows_it_at_once(place: Settings, serve: Serve) -> None:
    async with serve(database_url=place.database_url) as client:
        assert await memberships(client, 1) == []
        assert (await client.ask(LIVE, deleted=False))["segments"]["nodes"] == []
        await demo.load(place, USERS)
        for deleted, number in ((False, 48), (True, 2)):
            nodes = (await client.ask(LIVE, deleted=deleted))["segments"]["nodes"]
            assert len(nodes) == number
            assert all(node["description"] for node in nodes)
        # Who has the most to tell.
        busiest = await rows(
            place, "SELECT user_id FROM membership_events GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 5"
        )
        rolled_out = {plan.slug for plan in PLANS if plan.rollouts}
        for user in ["1", *(user_id for (user_id,) in busiest)]:
            folded: dict[str, str | None] = {}
            for event in reversed(await history(client, user, first=100)):
                if event["action"] in ENDS:
                    del folded[event["slug"]]
                elif event["action"] in ("ADDED", "EXPIRY_CHANGED"):
                    folded[event["slug"]] = event["expiresAt"]
            held = {each["segment"]["slug"]: each["expiresAt"] for each in await memberships(client, user)}
            assert {slug: held[slug] for slug in held if slug not in rolled_out} == {
                slug: folded[slug] for slug in folded if slug not in rolled_out
            }
            assert folded


async def test_a_load_that_is_broken_off_leaves_nothing(place: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async def killed(*_: object) -> int:
        raise ConnectionResetError

    before = await counts(place), await rows(place, PARTITIONS)
    with monkeypatch.context() as patched:
        patched.setattr(writing, "finish", killed)
        with pytest.raises(ConnectionResetError):
            await demo.load(place, 100)
    assert (await counts(place), await rows(place, PARTITIONS)) == before
    assert (await demo.load(place, 100)).users == 100
    assert await rows(place, PARTITIONS) == [(12 + 1 + 3,)]


async def test_what_the_database_refuses_is_said_as_every_statement_does(place: Settings) -> None:
    await rows(place, "ALTER TABLE memberships ADD CHECK (false)")
    with pytest.raises(DBAPIError, match="memberships_check"):
        await demo.load(place, 100)
    assert set((await counts(place)).values()) == {0}


def test_two_loads_at_once_are_not_mixed(place: Settings) -> None:
    async def both() -> list[demo.Loaded | BaseException]:
        return list(await asyncio.gather(demo.load(place, 100), demo.load(place, 100), return_exceptions=True))

    assert Counter(type(each) for each in asyncio.run(both())) == {demo.Loaded: 1, StartError: 1}


def test_it_is_the_same_year_each_time() -> None:
    now = datetime.now(UTC)
    first, second = (list(Year(now, 100).weeks(range(len(PLANS)))) for _ in range(2))
    assert first == second
    assert len({plan.slug for plan in PLANS}) == 50


@pytest.mark.parametrize(
    "now", ["2027-01-01T00:00:01Z", "2028-02-29T12:00:00Z", "2026-11-21T06:00:00Z", "2026-11-22T23:59:59.999999Z"]
)
def test_it_ends_now_whatever_the_day_and_leaves_nobody_out(now: str) -> None:
    end = datetime.fromisoformat(now)
    year = Year(end, 100)
    instants = [event.at for batch in year.weeks(range(len(PLANS))) for event in batch.events]
    assert instants == sorted(instants)
    assert end - timedelta(days=DAYS) < instants[0] < instants[-1] < end
    assert year.users == 100
    assert all(member.expires_at is None or member.expires_at >= end for member in year.members())


def test_without_redis_it_says_who_may_be_late(
    place: Settings, unused_port: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "load", partial(demo.load, users=100))
    demo.load_demo(dataclasses.replace(place, redis_url=f"redis://127.0.0.1:{unused_port}"))
    printed = capsys.readouterr()
    assert [line.split() for line in printed.out.splitlines()][:3] == [
        ["loaded", "rows"],
        ["segments", "50"],
        ["users", "100"],
    ]
    assert "a minute late" in printed.err


def test_the_command_refuses_a_database_in_use_in_one_line(place: Settings) -> None:
    assert place.database_url is not None
    assert place.redis_url is not None
    sql(place.database_url, "INSERT INTO segments (slug, version) VALUES ('OURS', 1)")
    urls = {"SEGMENTQL_DATABASE_URL": place.database_url, "SEGMENTQL_REDIS_URL": place.redis_url}
    refused = forking.run(["load-demo"], cwd=ROOT, env=urls)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.splitlines()[-1] == (
        "segmentql: The database has segments or operations already, or is just getting some: "
        "load-demo only fills an empty one."
    )
