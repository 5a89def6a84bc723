"""Background work while what it stands on is away: the database without a word, the answer to a COMMIT, the store."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from background import (
    CANCEL,
    ask_for_report,
    comes_to,
    download,
    execute,
    finished,
    in_the_middle,
    lines,
    report,
    stalled,
    stalling_reports,
)
from conftest import Serve
from operations import change, change_within, count, create, database_clock, delete, differences, new_key
from relays import relay_before
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from db import connections, job_runs
from db import reports as copying
from db.files import Files
from db.reports import Period
from jobs.purge import Retention, by_hand
from server.settings import Settings

RETENTION = Retention(24, 7, 30, None)


@pytest.fixture
async def stalling(prepared_url: str) -> AsyncIterator[AsyncEngine]:
    async with stalling_reports(prepared_url) as engine:
        yield engine


async def test_a_connection_that_died_without_a_word_holds_up_nothing(
    stalling: AsyncEngine, prepared_url: str, serve: Serve, tmp_path: Path
) -> None:
    """The report on it is called off. The next one gets another connection, and the process ends as usual."""
    async with AsyncExitStack() as ending:
        relay = await ending.enter_async_context(relay_before(prepared_url, tmp_path))
        async with stalled(stalling):
            client = await ending.enter_async_context(serve(database_url=relay.url, serve_tasks=1))
            task_id = (await ask_for_report(client))["task"]["id"]
            await in_the_middle(stalling)
            relay.silence_copies()
            assert (await client.ask(CANCEL, id=task_id, key=new_key()))["cancelTask"]["userErrors"] == []
        assert len(lines(await report(client))) == 1_000


@pytest.mark.parametrize("deliver", [True, False])
async def test_a_report_whose_commit_is_not_answered_is_published_once(
    stalling: AsyncEngine, prepared_url: str, serve: Serve, tmp_path: Path, deliver: bool
) -> None:
    folder = tmp_path / "files"
    async with relay_before(prepared_url, tmp_path) as relay, stalled(stalling) as let_go:
        relay.deliver = deliver
        async with serve(database_url=relay.url, files=str(folder), serve_tasks=1) as client:
            task_id = (await ask_for_report(client))["task"]["id"]
            await in_the_middle(stalling)
            # No heartbeat is due while the last lines are written.
            await execute(stalling, "SELECT pg_sleep(0.1)")
            relay.answers_to_lose = 1
            await let_go()
            while relay.answers_to_lose:
                await asyncio.sleep(0.01)
            found = await finished(client, task_id)
            assert len(lines(await download(client, found))) == 1_000
            ((attempt,),) = await execute(stalling, "SELECT attempt FROM tasks")
            await comes_to(lambda: [path.name for path in folder.rglob("*.csv*")], [f"{attempt}.csv"])


async def test_a_purge_whose_commit_is_not_answered_counts_right(
    stalling: AsyncEngine, prepared_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await execute(
        stalling, "UPDATE memberships SET expires_at = added_at + interval '1 microsecond' WHERE segment_id = 1"
    )
    await execute(stalling, "UPDATE membership_events SET expires_at = at + interval '1 microsecond'")
    monkeypatch.setattr("jobs.purge.CHUNK", 100)
    files = Files(str(tmp_path / "files"))
    files.prepare()
    async with relay_before(prepared_url, tmp_path) as relay:
        writer = connections.writer(relay.url, 3)
        advance = job_runs.advance

        async def losing(*arguments: Any) -> int | None:
            counted = await advance(*arguments)
            if counted == 300:
                relay.answers_to_lose = 1
            return counted

        monkeypatch.setattr(job_runs, "advance", losing)
        with pytest.raises(Exception, match="connection"):
            await by_hand(writer, files, RETENTION)
        await writer.dispose()
    ((stats, state),) = await execute(stalling, "SELECT stats, CAST(state AS text) FROM job_runs")
    left = await count(stalling, "memberships")
    assert (stats["memberships"], state) == (1_000 - left, "FAILED")
    assert (await by_hand(stalling, files, RETENTION))["memberships"] == left
    assert await differences(stalling) == []


async def test_a_store_that_is_away_keeps_the_purge_from_nothing_else(
    serve: Serve, engine: AsyncEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve() as client:
        await create(client, "A")
        await delete(client, "A")
    await execute(engine, "UPDATE tasks SET status = 'FAILED', finished_at = now()")
    # Nobody has prepared it.
    stats = await by_hand(engine, Files(str(tmp_path / "no such folder")), RETENTION)
    assert stats["cleanups"] == 1
    (line,) = [r.getMessage() for r in caplog.records if r.name == "jobs.purge"]
    assert line.startswith("what killed workers left could not be looked for, the next purge will: ")


async def test_a_segment_is_deleted_after_all_that_happened_to_it_whatever_the_clock_says(
    serve: Serve, engine: AsyncEngine
) -> None:
    async with serve(serve_tasks=1) as client:
        await create(client, "A")
        await change(client, 7, add=["A"])
        # As a primary has dated it whose clock was ahead of this one's.
        await execute(engine, "UPDATE memberships SET added_at = added_at + interval '1 hour'")
        await execute(engine, "UPDATE membership_events SET at = at + interval '1 hour'")
        await delete(client, "A")
        while await count(engine, "memberships"):
            await asyncio.sleep(0.05)
        assert await differences(engine) == []


async def test_a_period_that_is_not_over_ends_where_everything_is_known(
    serve: Serve, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A removal dated before an expiry, and committed when the report is being read: no expiry is told of."""
    copy = copying.copy
    async with serve(serve_tasks=1) as client:
        await create(client, "A")
        await change(client, 7, add=["A"])
        expiry = await database_clock(engine) + timedelta(seconds=1.5)
        await change(client, 7, add=["A"], expiresAt=expiry.isoformat())

        async def late(conn: AsyncConnection, period: Period, output: Any) -> int:
            async with engine.begin() as tx:
                await change_within(tx, "7", remove=["A"])
                assert await database_clock(engine) < expiry
                while await database_clock(engine) <= expiry:
                    await asyncio.sleep(0.05)
                return await copy(conn, period, output)

        monkeypatch.setattr(copying, "copy", late)
        first = [line[2] for line in lines(await report(client, to="2999-01-01T00:00:00Z"))]
        monkeypatch.setattr(copying, "copy", copy)
        second = [line[2] for line in lines(await report(client, to="2999-01-01T00:00:00Z"))]
    assert first == ["ADDED", "EXPIRY_CHANGED"]
    assert second == ["ADDED", "EXPIRY_CHANGED", "REMOVED"]


async def test_connections_over_a_network_are_kept_alive(settings: Settings) -> None:
    assert settings.database_url is not None
    url = make_url(settings.database_url)

    forwarding: set[asyncio.Future[None]] = set()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        forwarding.add(ended)
        there = await asyncio.open_unix_connection(f"{url.query['host']}/.s.PGSQL.5432")
        await asyncio.gather(pump(reader, there[1]), pump(there[0], writer), return_exceptions=True)
        ended.set_result(None)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while some := await reader.read(65_536):
            writer.write(some)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(forward, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        tcp = url.set(host=host, port=port, query={}).render_as_string(hide_password=False)
        for engine in (connections.writer(tcp, 1), connections.reader(tcp, 1), connections.exporter(tcp, 1)):
            async with engine.connect() as conn:
                driver = (await conn.get_raw_connection()).driver_connection
                assert driver is not None
                kept = driver._transport.get_extra_info("socket")
                assert kept.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                assert kept.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
            await engine.dispose()
        # Else their sockets would be somebody else's garbage.
        await asyncio.wait_for(asyncio.gather(*forwarding), 10)
