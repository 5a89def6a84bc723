"""Background tasks: polled, called off, and unkillable."""

import asyncio
import dataclasses
import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM
from typing import Any
from uuid import UUID, uuid4

import pytest
from background import (
    CANCEL,
    TASKS,
    WORKER,
    ask_for_report,
    comes_to,
    download,
    execute,
    finished,
    in_the_middle,
    let_leases_end,
    lines,
    process,
    purged,
    report,
    stalled,
    stalling_reports,
    task,
    verified,
)
from conftest import Client, Serve
from operations import change, count, create, database_clock, delete, new_key
from sqlalchemy.ext.asyncio import AsyncEngine

from db import tasks
from db.tables import TaskKind
from server.embedded import Servers
from server.settings import Settings


async def cancel(client: Client, task_id: str, key: str = "") -> Any:
    return (await client.ask(CANCEL, id=task_id, key=key or new_key()))["cancelTask"]


async def test_a_task_is_polled_until_it_has_ended(serve: Serve) -> None:
    async with serve() as client:
        queued = (await ask_for_report(client))["task"]
        assert queued["status"] == "QUEUED"
        assert 250 <= queued["pollAfterMs"] <= 750
        for name in ("startedAt", "finishedAt", "file", "error", "progress"):
            assert queued[name] is None
    async with serve(serve_tasks=1) as client:
        done = await finished(client, queued["id"])
    assert done["status"] == "SUCCEEDED"
    assert done["createdAt"] <= done["startedAt"] <= done["finishedAt"]
    assert (done["pollAfterMs"], done["error"], done["progress"], done["rowsDone"]) == (None, None, None, 0)
    assert done["file"]["rows"] == 0


async def test_poll_after_is_a_share_of_what_is_left_or_has_passed(serve: Serve, engine: AsyncEngine) -> None:
    async with serve() as client:
        task_id = (await ask_for_report(client))["task"]["id"]
        running = """UPDATE tasks SET status = 'RUNNING', attempt = 1, heartbeat_at = now(),
                     started_at = now() - make_interval(secs => :secs), rows_done = :done, rows_total = :total"""
        for secs, done, total, least, most in (
            (0, 0, None, 250, 250),
            (8, 10, None, 2_000, 2_100),
            (600, 10, None, 10_000, 10_000),
            (8, 100, 1_000, 10_000, 10_000),
            (8, 500, 1_000, 2_000, 2_100),
            (8, 1_000, 1_000, 250, 250),
        ):
            await execute(engine, running, secs=secs, done=done, total=total)
            found = await task(client, task_id)
            assert least <= found["pollAfterMs"] <= most
            assert found["progress"] == (None if total is None else done / total)
            assert found["rowsDone"] == done


async def test_an_id_that_is_nobodys_or_no_id_is_no_task(serve: Serve, engine: AsyncEngine) -> None:
    async with serve() as client:
        mine = (await ask_for_report(client))["task"]["id"]
        assert (await task(client, mine.upper()))["id"] == mine
        for other in (str(uuid4()), "", "7", f"{{{mine}}}", mine.replace("-", ""), f"urn:uuid:{mine}", "\x00"):
            assert await task(client, other) is None
            payload = await cancel(client, other)
            assert [(e["code"], e["path"]) for e in payload["userErrors"]] == [("TASK_NOT_FOUND", ["id"])]
        # A task belongs to the caller that made it.
        await execute(engine, "UPDATE tasks SET client = 'somebody else'")
        assert await task(client, mine) is None
        assert (await cancel(client, mine))["userErrors"][0]["code"] == "TASK_NOT_FOUND"
        assert (await client.ask(TASKS))["tasks"]["nodes"] == []
        assert await execute(engine, "SELECT status FROM tasks") == [("QUEUED",)]


async def test_tasks_are_listed_newest_first_by_pages_kind_and_status(serve: Serve) -> None:
    async with serve() as client:
        await create(client, "A")
        made = [(await ask_for_report(client))["task"]["id"] for _ in range(5)]
        await delete(client, "A")
        await cancel(client, made[1])
        found, after = [], None
        while True:
            page = (await client.ask(TASKS, first=2, after=after, kind="REPORT"))["tasks"]
            found += [node["id"] for node in page["nodes"]]
            if not page["pageInfo"]["hasNextPage"]:
                break
            after = page["pageInfo"]["endCursor"]
        assert found == made[::-1]
        assert [n["kind"] for n in (await client.ask(TASKS))["tasks"]["nodes"]] == ["SEGMENT_CLEANUP"] + ["REPORT"] * 5
        canceled = (await client.ask(TASKS, status="CANCELED"))["tasks"]["nodes"]
        assert [node["id"] for node in canceled] == [made[1]]
        for cursor in ("nonsense", page["pageInfo"]["endCursor"][:-8]):
            answer = await client.post(TASKS, {"after": cursor})
            assert [e["extensions"]["code"] for e in answer["errors"]] == ["BAD_USER_INPUT"]


async def test_a_waiting_task_is_called_off_once(serve: Serve, engine: AsyncEngine) -> None:
    async with serve() as client:
        task_id, key = (await ask_for_report(client))["task"]["id"], new_key()
        payload = await cancel(client, task_id, key)
        assert (payload["task"]["status"], payload["userErrors"]) == ("CANCELED", [])
        assert payload["task"]["finishedAt"] is not None
        again = await cancel(client, task_id, key)
        assert (again["replayed"], again["task"]) == (True, payload["task"])
        refused = await cancel(client, task_id)
        assert [(e["code"], e["path"]) for e in refused["userErrors"]] == [("NOT_CANCELABLE", ["id"])]
        assert refused["task"] is None
    async with serve(serve_tasks=1) as client:
        await report(client)  # a later one: the worker has passed it
        assert (await task(client, task_id))["status"] == "CANCELED"


async def test_a_cleanup_cannot_be_called_off(serve: Serve) -> None:
    async with serve() as client:
        await create(client, "A")
        await delete(client, "A")
        (cleanup,) = (await client.ask(TASKS))["tasks"]["nodes"]
        payload = await cancel(client, cleanup["id"])
        assert [(e["code"], e["path"]) for e in payload["userErrors"]] == [("NOT_CANCELABLE", ["id"])]


@pytest.fixture
async def stalling(prepared_url: str) -> AsyncIterator[AsyncEngine]:
    async with stalling_reports(prepared_url) as engine:
        yield engine


def published(folder: Path) -> list[str]:
    """Every file there is."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


async def test_a_report_whose_worker_is_killed_is_made_by_another(
    stalling: AsyncEngine, prepared_url: str, serve: Serve, servers: Servers, tmp_path: Path
) -> None:
    async with AsyncExitStack() as ending, stalled(stalling) as let_go:
        place = {"database_url": prepared_url, "files": str(tmp_path / "files")}
        idle = await ending.enter_async_context(serve(**place))
        worker = await ending.enter_async_context(
            process(tmp_path, prepared_url, servers.redis_url, WORKER, files=place["files"])
        )
        task_id = (await ask_for_report(idle))["task"]["id"]
        await in_the_middle(stalling)
        assert (await task(idle, task_id))["status"] == "RUNNING"
        worker.send(SIGKILL)
        worker.process.wait()
        await let_leases_end(stalling)
        await let_go()
        other = await ending.enter_async_context(serve(serve_tasks=1, **place))
        found = await finished(other, task_id)
        content = await download(other, found)
        assert [line[0] for line in lines(content)] == [f"user-{n:06}" for n in range(1_000)]
        assert await execute(stalling, "SELECT attempt, failures FROM tasks") == [(2, 1)]
        await comes_to(lambda: published(tmp_path / "files"), [f"reports/{task_id}/2.csv"])
        assert await verified(prepared_url, place["files"]) == []


async def test_a_worker_that_was_frozen_past_its_lease_moves_nothing(
    stalling: AsyncEngine, prepared_url: str, serve: Serve, servers: Servers, tmp_path: Path
) -> None:
    async with AsyncExitStack() as ending, stalled(stalling) as let_go:
        place = {"database_url": prepared_url, "files": str(tmp_path / "files")}
        worker = await ending.enter_async_context(
            process(tmp_path, prepared_url, servers.redis_url, WORKER, files=place["files"])
        )
        idle = await ending.enter_async_context(serve(**place))
        task_id = (await ask_for_report(idle))["task"]["id"]
        await in_the_middle(stalling)
        await purged(stalling)  # so that it holds no lock
        worker.send(SIGSTOP)
        await let_leases_end(stalling)
        other = await ending.enter_async_context(serve(serve_tasks=1, **place))
        await in_the_middle(stalling, reports=2)
        await let_go()
        found = await finished(other, task_id)
        content = await download(other, found)
        row = await execute(stalling, "SELECT * FROM tasks")
        worker.send(SIGCONT)
        await worker.says("lost report")
        assert await execute(stalling, "SELECT * FROM tasks") == row
        await comes_to(lambda: published(tmp_path / "files"), [f"reports/{task_id}/2.csv"])
        assert await download(other, found) == content
        assert await verified(prepared_url, place["files"]) == []
        worker.send(SIGTERM)
        assert worker.process.wait(20) == 0


async def test_a_running_report_is_called_off_and_leaves_no_file(
    stalling: AsyncEngine, prepared_url: str, serve: Serve, tmp_path: Path
) -> None:
    async with serve(database_url=prepared_url, serve_tasks=1) as client, stalled(stalling) as let_go:
        task_id = (await ask_for_report(client))["task"]["id"]
        await in_the_middle(stalling)
        assert (await cancel(client, task_id))["task"]["status"] == "CANCELED"
        # The worker sees it at its next heartbeat, while its statement still waits.
        await in_the_middle(stalling, reports=0)
        await let_go()
        await report(client)
        assert await execute(stalling, "SELECT status, attempt FROM tasks ORDER BY id") == [
            ("CANCELED", 1),
            ("SUCCEEDED", 1),
        ]
        assert [name for name in published(tmp_path) if task_id in name] == []


async def test_a_process_that_stops_puts_its_task_back_at_once(
    stalling: AsyncEngine, prepared_url: str, serve: Serve
) -> None:
    async with stalled(stalling) as let_go:
        async with serve(database_url=prepared_url, serve_tasks=1) as client:
            task_id = (await ask_for_report(client))["task"]["id"]
            await in_the_middle(stalling)
        waiting = await execute(stalling, "SELECT status, attempt, failures, run_after <= now() FROM tasks")
        assert waiting == [("QUEUED", 1, 0, True)]
        await let_go()
    async with serve(database_url=prepared_url, serve_tasks=1) as client:
        assert len(lines(await download(client, await finished(client, task_id)))) == 1_000


async def test_an_attempt_that_fails_is_tried_five_times(
    stalling: AsyncEngine, prepared_url: str, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    await execute(stalling, "ALTER TABLE membership_events RENAME TO mislaid")
    async with serve(database_url=prepared_url, serve_tasks=1) as client:
        task_id = (await ask_for_report(client))["task"]["id"]
        for attempt in range(1, 6):
            while not (await execute(stalling, "SELECT 1 FROM tasks WHERE failures >= :n", n=attempt)):
                # As if the pause before the next attempt were over.
                await execute(stalling, "UPDATE tasks SET run_after = now() WHERE status = 'QUEUED'")
                await asyncio.sleep(0.02)
        found = await task(client, task_id)
        assert found["status"] == "FAILED"
        assert found["error"].startswith("An internal error stopped it (id ")
        error_id = found["error"].removeprefix("An internal error stopped it (id ").removesuffix(").")
        (logged,) = [r for r in caplog.records if error_id in r.getMessage()]
        assert "membership_events" in str(logged.exc_info)
        assert await execute(stalling, "SELECT attempt, failures FROM tasks") == [(5, 5)]
        assert len([r for r in caplog.records if r.name == "jobs.worker" and r.levelno == logging.ERROR]) == 5


async def test_a_task_that_fails_waits_longer_each_time(serve: Serve, engine: AsyncEngine) -> None:
    async with serve() as client:
        await ask_for_report(client)
    pauses = []
    for _ in range(4):
        async with engine.begin() as tx:
            claim = await tasks.claim(tx, list(TaskKind))
            assert claim is not None
            assert await tasks.fail(tx, claim, "No.", final=False)
        found = await execute(engine, "SELECT extract(epoch FROM run_after - clock_timestamp()) FROM tasks")
        pauses.append(round(found[0][0]))
        await execute(engine, "UPDATE tasks SET run_after = now()")
    assert pauses == [2, 8, 32, 128]


async def test_a_task_that_kills_its_workers_is_given_up(serve: Serve, engine: AsyncEngine) -> None:
    async with serve() as client:
        task_id = (await ask_for_report(client))["task"]["id"]
        for attempt in range(1, 6):
            async with engine.begin() as tx:
                claim = await tasks.claim(tx, list(TaskKind))
                assert claim is not None
                assert claim.attempt == attempt
            await let_leases_end(engine)
    async with serve(serve_tasks=1) as client:
        found = await finished(client, task_id)
        assert (found["status"], found["error"]) == ("FAILED", "Its worker stopped without a word 5 times.")
    assert await execute(engine, "SELECT attempt, failures FROM tasks") == [(5, 5)]


async def test_every_write_of_a_worker_that_lost_its_task_is_refused(serve: Serve, engine: AsyncEngine) -> None:
    async with serve() as client:
        await ask_for_report(client)
    async with engine.begin() as tx:
        old = await tasks.claim(tx, list(TaskKind))
    await let_leases_end(engine)
    async with engine.begin() as tx:
        new = await tasks.claim(tx, list(TaskKind))
    assert old is not None
    assert new is not None
    before = await execute(engine, "SELECT * FROM tasks")
    async with engine.begin() as tx:
        assert not await tasks.beat(tx, old, 7)
        assert not await tasks.advance(tx, old, 7)
        assert not await tasks.expect(tx, old, 7)
        assert not await tasks.succeed(tx, old, 7, {})
        assert not await tasks.fail(tx, old, "No.", final=True)
        assert not await tasks.release(tx, old)
        assert not await tasks.beat(tx, dataclasses.replace(new, id=UUID(int=0)), 7)
    assert await execute(engine, "SELECT * FROM tasks") == before


async def test_many_workers_do_each_task_once(serve: Serve, engine: AsyncEngine) -> None:
    async with AsyncExitStack() as ending:
        idle = await ending.enter_async_context(serve())
        made = [(await ask_for_report(idle))["task"]["id"] for _ in range(30)]
        await asyncio.gather(*(ending.enter_async_context(serve(serve_tasks=4)) for _ in range(3)))
        found = await asyncio.gather(*(finished(idle, task_id) for task_id in made))
        assert {each["status"] for each in found} == {"SUCCEEDED"}
        assert await execute(engine, "SELECT DISTINCT attempt, failures FROM tasks") == [(1, 0)]
        assert await count(engine, "tasks") == 30


async def test_one_slot_is_kept_from_cleanups(serve: Serve, engine: AsyncEngine) -> None:
    async with serve() as client:
        await create(client, *(f"S{n}" for n in range(4)))
        for n in range(4):
            await change(client, 7, add=[f"S{n}"])
            await delete(client, f"S{n}")
    # Whoever cleans up waits, and no one who reads.
    async with engine.begin() as tx:
        await tx.exec_driver_sql("LOCK TABLE memberships IN SHARE ROW EXCLUSIVE MODE")
        async with serve(serve_tasks=2) as client:
            assert len(lines(await report(client))) == 8
            assert await count(engine, "memberships") == 4


# A small file system of its own for one process; where one is not root, in a user namespace.
SMALL_DISK = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), "--", "sh", "-c"]
ON_SMALL_DISK = 'mount -t tmpfs -o size=1m none "$0" && "$@"; find "$0" -type f'


async def test_a_disk_that_fills_up_fails_the_report_and_nothing_is_left(
    serve: Serve, engine: AsyncEngine, servers: Servers, settings: Settings, tmp_path: Path
) -> None:
    await execute(
        engine,
        """INSERT INTO membership_events
           SELECT 'user-' || n, 1, 'ADDED', now() - interval '1 s', 'infinity', NULL
           FROM generate_series(1, 40000) AS n"""
        "",
    )
    await execute(engine, "INSERT INTO segments (slug, version) VALUES ('A', 1)")
    place = tmp_path / "files"
    place.mkdir()
    assert settings.database_url is not None
    async with serve() as client:
        command = [*SMALL_DISK, ON_SMALL_DISK, str(place), sys.executable, "-m", "server", "worker"]
        async with process(tmp_path, settings.database_url, servers.redis_url, command, files=str(place)) as worker:
            task_id = (await ask_for_report(client))["task"]["id"]
            found = await finished(client, task_id)
            assert found["status"] == "FAILED", worker.log.read_text()
            assert found["error"].startswith("The file could not be stored: ")
            assert "No space left on device" in found["error"]
            assert found["file"] is None
            assert await execute(engine, "SELECT attempt, failures FROM tasks") == [(1, 1)]
            # A small one fits: nothing of the large one is left.
            now = (await database_clock(engine)).isoformat()
            small = (await ask_for_report(client, from_=now, to="2999-01-01T00:00:00Z"))["task"]["id"]
            assert (await finished(client, small))["status"] == "SUCCEEDED"
            os.kill(only_child(worker.process.pid), SIGTERM)
            worker.process.wait(20)
            (left,) = [line for line in worker.log.read_text().splitlines() if line.startswith(str(place))]
            assert left == f"{place}/reports/{small}/1.csv"


def only_child(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)
