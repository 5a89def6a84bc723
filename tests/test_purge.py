"""The nightly purge and the cleanup of deleted segments: everything leaves once, nothing else changes."""

import asyncio
import logging
import re
from ast import literal_eval
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any
from uuid import uuid4

import httpx
import pytest
from background import (
    WORKER,
    ask_for_report,
    download,
    execute,
    finished,
    process,
    purged,
    stalled,
    task,
    verified,
)
from conftest import Serve
from operations import (
    CREATE,
    change,
    count,
    create,
    database_clock,
    delete,
    differences,
    expire,
    history,
    memberships,
    new_key,
    slugs,
)
from sqlalchemy.ext.asyncio import AsyncEngine
from typer.testing import CliRunner

from db import connections, partitions
from db.files import Files
from jobs import purge as purging
from jobs.partitions import keep_ahead
from jobs.purge import Retention, by_hand
from server.cli import app
from server.embedded import Servers
from server.settings import Settings

RETENTION = Retention(24, 7, 30, None)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    files = Files(str(tmp_path / "files"))
    files.prepare()
    return files


@pytest.fixture
async def own(prepared_url: str) -> AsyncIterator[AsyncEngine]:
    """A database of the test's own."""
    engine = connections.writer(prepared_url, pool_size=6)
    yield engine
    await engine.dispose()


async def many(engine: AsyncEngine, users: int, *, expired: bool, slug: str = "MANY") -> None:
    """So many members of a new segment, all of which have expired a while ago, or will not."""
    ((segment_id,),) = await execute(
        engine,
        """WITH raised AS (UPDATE catalogue SET version = version + 1 RETURNING version)
           INSERT INTO segments (slug, version) SELECT :slug, version FROM raised RETURNING id""",
        slug=slug,
    )
    ((operation_id,),) = await execute(
        engine,
        "INSERT INTO operations (client, kind, fingerprint, result) VALUES ('seed', 'seed', '', '{}') RETURNING id",
    )
    ends = "statement_timestamp() - interval '1 s' - make_interval(secs => n / 1e6)" if expired else "'infinity'"
    await execute(
        engine,
        f"""WITH added AS (
                INSERT INTO memberships (user_id, segment_id, added_at, expires_at)
                SELECT 'user-' || n, :segment_id, statement_timestamp() - interval '30 s', {ends}
                FROM generate_series(1, :users) AS n RETURNING *
            ) INSERT INTO membership_events
              SELECT user_id, segment_id, 'ADDED', added_at, expires_at, :operation_id FROM added""",
        segment_id=segment_id,
        operation_id=operation_id,
        users=users,
    )


async def ended(engine: AsyncEngine) -> list[tuple[Any, ...]]:
    """How often each kind of end was written, and for how many different memberships."""
    return await execute(
        engine,
        """SELECT CAST(action AS text), count(*), count(DISTINCT (user_id, segment_id, at)) FROM membership_events
           WHERE action IN ('EXPIRED', 'SEGMENT_DELETED') GROUP BY action ORDER BY action""",
    )


async def test_what_has_expired_leaves_and_no_answer_changes(serve: Serve, engine: AsyncEngine, files: Files) -> None:
    async with serve() as client:
        await create(client, "A", "B")
        for user in (1, 2, 3):
            await change(client, user, add=["A", "B"])
        await expire(engine, "1", "A", 100)
        await expire(engine, "2", "B", 5)
        await expire(engine, "3", "A", -60)
        before = [await history(client, user) for user in (1, 2, 3)]
        stats = await by_hand(engine, files, RETENTION)
        assert stats["memberships"] == 2
        assert await count(engine, "memberships") == 4
        assert await ended(engine) == [("EXPIRED", 2, 2)]
        assert [await history(client, user) for user in (1, 2, 3)] == before
        assert {event["actor"] for event in before[0] if event["action"] == "EXPIRED"} == {"purge"}
        assert [await slugs(client, user, "LATEST") for user in (1, 2, 3)] == [["B"], ["A"], ["A", "B"]]
        assert await differences(engine) == []
        assert (await by_hand(engine, files, RETENTION))["memberships"] == 0


@pytest.mark.soak
async def test_two_purges_at_once_while_users_are_added_again(
    serve: Serve, engine: AsyncEngine, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purging, "CHUNK", 200)
    await many(engine, 10_000, expired=True)
    async with serve() as client:
        again = [f"user-{n}" for n in range(1, 10_000, 50)]

        async def add() -> None:
            for user in again:
                payload = await change(client, user, add=["MANY"])
                assert payload["added"] == ["MANY"]

        *_, one, two = await asyncio.gather(add(), by_hand(engine, files, RETENTION), by_hand(engine, files, RETENTION))
        # Each row leaves once: by one of the purges, or by the change that begins a new membership in its place.
        assert await ended(engine) == [("EXPIRED", 10_000, 10_000)]
        assert min(one["memberships"], two["memberships"]) > 0
        assert 10_000 - len(again) <= one["memberships"] + two["memberships"] <= 10_000
        assert await count(engine, "memberships") == len(again)
        assert [await slugs(client, user, "LATEST") for user in again[::20]] == [["MANY"]] * 10
        assert await differences(engine) == []


async def test_a_purge_waits_for_changes_that_still_take_the_member_for_one(
    serve: Serve, engine: AsyncEngine, files: Files
) -> None:
    """A change that was dated before the expiry, and is written after it."""
    async with serve() as client:
        await create(client, "A")
        await change(client, 7, add=["A"])
        async with engine.begin() as tx:
            await tx.exec_driver_sql("SELECT pg_current_xact_id()")
            await expire(engine, "7", "A", 0.001)
            purge = asyncio.create_task(by_hand(engine, files, RETENTION))
            for _ in range(10):
                await asyncio.sleep(0.03)
                assert await count(engine, "memberships") == 1
        assert (await purge)["memberships"] == 1


async def test_members_of_a_deleted_segment_leave_by_their_true_end(
    serve: Serve, engine: AsyncEngine, files: Files
) -> None:
    """A membership that expired after its segment was deleted ended with the segment, whichever job moves it."""
    async with serve() as client:
        await create(client, "A")
        for user in ("early", "late", "never"):
            await change(client, user, add=["A"])
        await expire(engine, "early", "A", 50)
        await delete(client, "A")
        await expire(engine, "late", "A", -0.2)
        await asyncio.sleep(0.25)
        told = {user: await history(client, user) for user in ("early", "late", "never")}
        assert (await by_hand(engine, files, RETENTION))["memberships"] == 2
        assert [user for (user,) in await execute(engine, "SELECT user_id FROM memberships")] == ["never"]
        assert {user: await history(client, user) for user in told} == told
        assert [told[user][0]["action"] for user in told] == ["EXPIRED", "SEGMENT_DELETED", "SEGMENT_DELETED"]
    async with serve(serve_tasks=1) as client:
        while await count(engine, "memberships"):
            await asyncio.sleep(0.05)
        assert {user: await history(client, user) for user in told} == told
        assert await differences(engine) == []


async def test_a_night_is_purged_once_by_whichever_process(
    serve: Serve, engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await many(engine, 500, expired=True)
    async with AsyncExitStack() as ending:
        await asyncio.gather(*(ending.enter_async_context(serve(serve_tasks=1)) for _ in range(4)))
        await purged(engine)
    ((job, slot, attempt, stats, error, took),) = await execute(
        engine, "SELECT job, slot, attempt, stats, error, finished_at - started_at FROM job_runs"
    )
    now = await database_clock(engine)
    assert (job, attempt, error) == ("purge", 1, None)
    assert slot == now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    assert stats == {
        "memberships": 500,
        "keys": 0,
        "uploads": 0,
        "files": 0,
        "staging": 0,
        "tasks": 0,
        "cleanups": 0,
    }
    assert timedelta() < took < timedelta(minutes=1)
    (line,) = [r.getMessage() for r in caplog.records if " took " in r.getMessage()]
    told = re.fullmatch(rf"the purge of {re.escape(slot.isoformat())} took \d+\.\d s: (.*)", line)
    assert told is not None
    assert literal_eval(told[1]) == stats


async def test_nights_that_were_missed_are_caught_up_with_by_one_run(
    own: AsyncEngine, prepared_url: str, serve: Serve
) -> None:
    """All processes are down over midnight: three nights, by the database's idea of now."""
    await execute(own, "CREATE TABLE clock AS SELECT interval '0' AS ahead")
    for name in ("now", "clock_timestamp", "statement_timestamp"):
        await execute(
            own,
            f"""CREATE FUNCTION public.{name}() RETURNS timestamptz STABLE LANGUAGE sql
                AS 'SELECT pg_catalog.{name}() + (SELECT ahead FROM public.clock)'""",
        )
    await execute(own, f"ALTER DATABASE {own.url.database} SET search_path = public, pg_catalog")
    await own.dispose()
    async with serve(database_url=prepared_url, serve_tasks=1) as client:
        await purged(own)
        await create(client, "A")
        await change(client, 7, add=["A"], ttlDays=1)
        await change(client, 8, add=["A"], ttlDays=5)
    ((first,),) = await execute(own, "SELECT slot FROM job_runs")
    await execute(own, "UPDATE clock SET ahead = interval '3 days'")
    async with serve(database_url=prepared_url, serve_tasks=1) as client:
        await purged(own, runs=2)
        runs = await execute(own, "SELECT slot, attempt, stats ->> 'memberships' FROM job_runs ORDER BY slot")
        assert runs == [(first, 1, "0"), (first + timedelta(days=3), 1, "1")]
        assert await slugs(client, 8, "LATEST") == ["A"]
        assert await slugs(client, 7, "LATEST") == []
        assert await ended(own) == [("EXPIRED", 1, 1)]
        assert await differences(own) == []


SLOW = """CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
              IF OLD.user_id = 'user-500' THEN
                  PERFORM pg_advisory_lock_shared(42);
                  PERFORM pg_advisory_unlock_shared(42);
              END IF;
              RETURN OLD;
          END $$"""
TRIGGER = "CREATE TRIGGER slow BEFORE DELETE ON memberships FOR EACH ROW EXECUTE FUNCTION slow()"
END_IDLE = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
              WHERE datname = current_database() AND state = 'idle in transaction'
                AND state_change < clock_timestamp() - interval '1 second'"""
STALLED = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'"


@pytest.mark.parametrize("how", ["killed", "frozen"])
@pytest.mark.parametrize("work", ["purge", "cleanup"])
async def test_killed_or_frozen_in_the_middle_nothing_doubles_or_is_missing(
    own: AsyncEngine,
    prepared_url: str,
    serve: Serve,
    servers: Servers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    work: str,
) -> None:
    users = 5_500  # more than a chunk
    place = {"database_url": prepared_url, "files": str(tmp_path / "files")}
    async with AsyncExitStack() as ending, stalled(own) as let_go:
        idle = await ending.enter_async_context(serve(**place))
        await many(own, users, expired=work == "purge")
        if work == "cleanup":
            await delete(idle, "MANY")
        await execute(own, SLOW)
        await execute(own, TRIGGER)
        worker = await ending.enter_async_context(
            process(tmp_path, prepared_url, servers.redis_url, WORKER, files=place["files"])
        )
        while not await execute(own, STALLED):
            await asyncio.sleep(0.02)
        worker.send(SIGKILL if how == "killed" else SIGSTOP)
        await let_leases_end_of_those_who_hold_no_lock(own)
        await let_go()
        other = await ending.enter_async_context(serve(serve_tasks=1, **place))
        for _ in range(1_200):
            # What a frozen process holds locked PostgreSQL takes from it after ten seconds; here at once.
            if how == "frozen":
                await execute(own, END_IDLE)
            await let_leases_end_of_those_who_hold_no_lock(own)
            if await count(own, "memberships") == 0:
                break
            await asyncio.sleep(0.05)
        await purged(own)
        if how == "frozen":
            worker.send(SIGCONT)
            await worker.says("lost segment_cleanup|attempt 1 failed" if work == "cleanup" else "purge was broken off")
        action = "EXPIRED" if work == "purge" else "SEGMENT_DELETED"
        assert await ended(own) == [(action, users, users)]
        assert await verified(prepared_url, place["files"]) == []
        if work == "cleanup":
            (cleanup,) = (await other.ask("{ tasks { nodes { status rowsDone error } } }"))["tasks"]["nodes"]
            assert cleanup == {"status": "SUCCEEDED", "rowsDone": users, "error": None}
            assert await execute(own, "SELECT cleaned_at IS NOT NULL FROM segments") == [(True,)]
        else:
            assert await execute(own, "SELECT stats ->> 'memberships' FROM job_runs") == [(str(users),)]


async def let_leases_end_of_those_who_hold_no_lock(engine: AsyncEngine) -> None:
    for table, state in (("tasks", "status"), ("job_runs", "state")):
        await execute(
            engine,
            f"""UPDATE {table} SET heartbeat_at = heartbeat_at - interval '1 hour' WHERE ctid = ANY (ARRAY(
                    SELECT ctid FROM {table} WHERE {state} = 'RUNNING' AND attempt = 1 FOR UPDATE SKIP LOCKED))""",
        )


async def test_keys_are_given_up_after_their_retention_and_what_they_did_is_known(
    serve: Serve, engine: AsyncEngine, files: Files
) -> None:
    async with serve() as client:
        await create(client, "A")
        key = new_key()
        await change(client, 7, key=key, add=["A"])
        await execute(engine, "UPDATE operations SET at = at - interval '23 hours 59 minutes'")
        assert (await by_hand(engine, files, RETENTION))["keys"] == 0
        assert (await change(client, 7, key=key, add=["A"]))["replayed"] is True
        await execute(engine, "UPDATE operations SET at = at - interval '1 minute'")
        assert (await by_hand(engine, files, RETENTION))["keys"] == 2
        again = await change(client, 7, key=key, add=["A"])
        assert (again["replayed"], again["unchanged"]) == (False, ["A"])
        assert [event["actor"] for event in await history(client, 7)] == ["anonymous"]
        assert await count(engine, "operations") == 3


GIVE_UP = "UPDATE operations SET idempotency_key = NULL WHERE idempotency_key = :key"


async def test_a_key_that_is_given_up_at_this_moment_is_used_anew(serve: Serve, engine: AsyncEngine) -> None:
    async with serve() as client:
        await create(client, "A")
        key = new_key()
        await change(client, 7, key=key, add=["A"])

        async def give_up() -> None:
            for _ in range(200):
                await execute(
                    engine, "UPDATE operations SET idempotency_key = NULL WHERE idempotency_key = :key", key=key
                )

        giving_up = asyncio.create_task(give_up())
        while not giving_up.done():
            answers = await asyncio.gather(*(change(client, 7, key=key, add=["A"]) for _ in range(5)))
            assert {tuple(answer["unchanged"] + answer["added"]) for answer in answers} == {("A",)}


async def test_finished_tasks_are_forgotten_when_their_file_is_gone(
    serve: Serve, engine: AsyncEngine, files: Files
) -> None:
    async with serve(serve_tasks=1) as client:
        await purged(engine)
        made = [(await ask_for_report(client))["task"]["id"] for _ in range(2)]
        for task_id in made:
            await finished(client, task_id)
        await execute(engine, "UPDATE tasks SET finished_at = now() - interval '31 days' WHERE id = :id", id=made[0])
        long = Retention(24, 60, 30, None)
        stats = await by_hand(engine, files, long)
        assert (stats["files"], stats["tasks"]) == (0, 0)
        await download(client, await task(client, made[0]))
        stats = await by_hand(engine, files, RETENTION)
        assert (stats["files"], stats["tasks"]) == (1, 1)
        assert await task(client, made[0]) is None
        await download(client, await task(client, made[1]))


async def test_files_that_nobody_will_ask_for_are_removed(
    serve: Serve, engine: AsyncEngine, files: Files, tmp_path: Path
) -> None:
    async with serve(serve_tasks=1) as client:
        await purged(engine)
        good = await finished(client, (await ask_for_report(client))["task"]["id"])
    async with serve() as client:
        waiting = (await ask_for_report(client))["task"]["id"]
        called_off = (await ask_for_report(client))["task"]["id"]
        await execute(engine, "UPDATE tasks SET status = 'CANCELED', finished_at = now() WHERE id = :id", id=called_off)
        reports = tmp_path / "files" / "reports"
        for name in (
            f"{good['id']}/7.csv",
            f"{good['id']}/8.csv#1",
            f"{waiting}/1.csv#1",
            f"{called_off}/1.csv",
            f"{uuid4()}/1.csv",
            "notes.txt",
        ):
            (reports / name).parent.mkdir(exist_ok=True)
            (reports / name).touch()
        assert (await by_hand(engine, files, RETENTION))["leftovers"] == 3
        left = sorted(path.relative_to(reports).parts[0] for path in reports.rglob("*") if path.is_file())
        assert len(left) == 4
        assert {good["id"], waiting, "notes.txt"} < set(left)
        await download(client, await task(client, good["id"]))


async def test_a_cleanup_that_failed_is_queued_again(serve: Serve, engine: AsyncEngine, files: Files) -> None:
    async with serve() as client:
        await create(client, "A")
        await change(client, 7, add=["A"])
        await delete(client, "A")
        assert (await by_hand(engine, files, RETENTION))["cleanups"] == 0
        await execute(engine, "UPDATE tasks SET status = 'FAILED', finished_at = now(), error = 'No.'")
        assert (await by_hand(engine, files, RETENTION))["cleanups"] == 1
        assert (await by_hand(engine, files, RETENTION))["cleanups"] == 0
    async with serve(serve_tasks=1) as client:
        while not await execute(engine, "SELECT 1 FROM segments WHERE cleaned_at IS NOT NULL"):
            await asyncio.sleep(0.05)
    assert await ended(engine) == [("SEGMENT_DELETED", 1, 1)]


async def test_old_history_goes_when_that_is_wanted(own: AsyncEngine, files: Files) -> None:
    old = ["2024_12", "2025_01", "2025_02"]
    for month, then in pairwise([*old, "2025_03"]):
        await execute(
            own,
            f"""CREATE TABLE membership_events_{month} PARTITION OF membership_events
                FOR VALUES FROM ('{month.replace("_", "-")}-01Z') TO ('{then.replace("_", "-")}-01Z')""",
        )
    await keep_ahead(own)
    for at in ("2025-01-31T22:59Z", "2025-01-31T23:01Z"):
        await execute(own, f"INSERT INTO operations (client, kind, fingerprint, at) VALUES ('a', 'b', '', '{at}')")
    assert "partitions" not in await by_hand(own, files, RETENTION)
    months = await months_since(own, 2025, 2)
    # A membership that ended in a month waits to become an event of it.
    await execute(own, "INSERT INTO segments (slug, version, deleted_at) VALUES ('A', 1, '2025-01-15Z')")
    stats = await by_hand(own, files, Retention(24, 7, 30, months))
    assert stats["partitions"] == 1
    await execute(own, "UPDATE segments SET cleaned_at = now()")
    stats = await by_hand(own, files, Retention(24, 7, 30, months))
    assert (stats["partitions"], stats["operations"]) == (1, 1)
    async with own.connect() as conn:
        assert await partitions.oldest(conn) == datetime(2025, 2, 1, tzinfo=UTC)
        assert await partitions.missing(conn) == []


async def months_since(engine: AsyncEngine, year: int, month: int) -> int:
    now = (await database_clock(engine)).astimezone(UTC)
    return (now.year - year) * 12 + now.month - month


async def test_a_purge_that_fails_is_recorded_and_goes_on_where_it_was(
    own: AsyncEngine, prepared_url: str, serve: Serve, files: Files
) -> None:
    await many(own, 100, expired=True)
    await execute(own, "ALTER TABLE operations RENAME COLUMN idempotency_key TO mislaid")
    async with serve(database_url=prepared_url, serve_tasks=1):
        while not await execute(own, "SELECT 1 FROM job_runs WHERE state = 'FAILED'"):
            await asyncio.sleep(0.05)
    ((error, stats),) = await execute(own, "SELECT error, stats FROM job_runs")
    assert "idempotency_key" in error
    assert stats == {"memberships": 100}
    await execute(own, "ALTER TABLE operations RENAME COLUMN mislaid TO idempotency_key")
    await execute(own, "UPDATE job_runs SET heartbeat_at = heartbeat_at - interval '1 hour'")
    async with serve(database_url=prepared_url, serve_tasks=1):
        await purged(own)
    ((attempt, error, stats),) = await execute(own, "SELECT attempt, error, stats FROM job_runs")
    assert (attempt, error, stats["memberships"], stats["keys"]) == (2, None, 100, 0)


async def test_a_process_that_stops_leaves_the_purge_to_another_at_once(
    own: AsyncEngine, prepared_url: str, serve: Serve
) -> None:
    await many(own, 1_000, expired=True)
    await execute(own, SLOW)
    await execute(own, TRIGGER)
    async with stalled(own) as let_go:
        async with serve(database_url=prepared_url, serve_tasks=1):
            while not await execute(own, STALLED):
                await asyncio.sleep(0.02)
        assert await count(own, "memberships") == 1_000
        await let_go()
    async with serve(database_url=prepared_url, serve_tasks=1):
        await purged(own)
    assert await ended(own) == [("EXPIRED", 1_000, 1_000)]
    assert await execute(own, "SELECT attempt FROM job_runs") == [(2,)]


async def test_purge_by_hand_says_what_has_left(
    engine: AsyncEngine, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await many(engine, 300, expired=True)
    assert settings.database_url is not None
    assert settings.redis_url is not None
    monkeypatch.setenv("SEGMENTQL_DATABASE_URL", settings.database_url)
    monkeypatch.setenv("SEGMENTQL_REDIS_URL", settings.redis_url)
    monkeypatch.setenv("SEGMENTQL_FILES", str(tmp_path))
    result = await asyncio.to_thread(CliRunner().invoke, app, ["purge"])
    assert result.exit_code == 0, result.output
    assert result.stdout == ("Removed: 300 memberships, 0 keys, 0 uploads, 0 files, 0 staging, 0 tasks, 0 cleanups\n")
    assert "expired memberships" in result.stderr
    assert "300/300" in result.stderr
    runs = await execute(engine, "SELECT CAST(state AS text), stats ->> 'memberships', slot = started_at FROM job_runs")
    assert [run[:2] for run in runs] == [("FINISHED", "300")]


async def test_metrics_tell_when_how_long_and_how_many(
    engine: AsyncEngine, settings: Settings, servers: Servers, tmp_path: Path, unused_port: int
) -> None:
    await many(engine, 300, expired=True)
    assert settings.database_url is not None
    place = {"files": str(tmp_path), "metrics_port": str(unused_port)}
    async with process(tmp_path, settings.database_url, servers.redis_url, WORKER, **place) as worker:
        await worker.says(" took ")
        async with httpx.AsyncClient() as http:
            shown = ""
            while 'segmentql_purge_last_removed{what="memberships"} 300.0' not in shown:
                shown = (await http.get(f"http://127.0.0.1:{unused_port}/metrics")).text
                await asyncio.sleep(0.05)
    assert 'segmentql_purge_removed_total{what="memberships"} 300.0' in shown
    values = dict(line.split(" ") for line in shown.splitlines() if line.startswith("segmentql_purge_last"))
    at = float(values["segmentql_purge_last_finished_timestamp_seconds"])
    assert abs((await database_clock(engine)).timestamp() - at) < 60
    assert 0 < float(values["segmentql_purge_last_duration_seconds"]) < 60


async def test_a_cleanup_says_how_far_it_is(serve: Serve, engine: AsyncEngine) -> None:
    await many(engine, 5_000, expired=False)
    async with serve() as client:
        await delete(client, "MANY")
        payload = await client.ask(CREATE, slug="MANY", key=new_key())
        assert payload["createSegment"]["userErrors"] == []
        await change(client, "user-7", add=["MANY"])
    async with serve(serve_tasks=1) as client:
        seen = []
        while (nodes := (await client.ask("{ tasks { nodes { status progress rowsDone } } }"))["tasks"]["nodes"])[0][
            "status"
        ] != "SUCCEEDED":
            seen.append(nodes[0]["progress"])
        known = [progress for progress in seen if progress is not None]
        assert known == sorted(known)
        assert set(known) <= {0.0, 0.2, 0.4, 0.6, 0.8, 1.0}
        assert nodes == [{"status": "SUCCEEDED", "progress": None, "rowsDone": 5_000}]
        # The slug's new segment, with a new member, is none of its business.
        assert [m["segment"]["slug"] for m in await memberships(client, "user-7", "LATEST")] == ["MANY"]
        assert await differences(engine) == []
