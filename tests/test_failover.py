"""Failover to a synchronous standby: nothing acknowledged is lost, and nobody stays with the primary of before."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from background import verified
from clusters import Cluster, url_of
from conftest import Client, Serve
from operations import CHANGE, create, slugs
from sqlalchemy import make_url

from db.beside import beside
from server.settings import StartError, from_environ

# More than it takes by far: the machine may be busy (docs/faults.md has what it takes).
SECONDS = 15
# But for those who were just committing: they wait for the standby, whether anybody is still there to be told or not.
USERS = """SELECT query, wait_event FROM pg_stat_activity
           WHERE application_name = 'segmentql' AND wait_event IS DISTINCT FROM 'SyncRep'"""


@dataclass
class Pair:
    primary: Cluster
    standby: Cluster

    @property
    def url(self) -> str:
        # The one that is not written to yet comes first: the order says nothing.
        return url_of(self.standby, self.primary)


@dataclass
class Writing:
    """One change after the other, each asked for until it is acknowledged."""

    client: Client
    acknowledged: list[str] = field(default_factory=list)
    # Reads right after an acknowledgement that did not show it.
    stale: int = 0

    async def go_on(self) -> None:
        while True:
            await self.one()

    async def one(self, seconds: float = 30) -> None:
        user = f"user-{len(self.acknowledged)}"
        until = time.monotonic() + seconds
        while True:
            answer = await self.client.post(CHANGE, {"input": {"userId": user, "add": ["A"]}, "key": f"key-of-{user}"})
            if "errors" not in answer:
                break
            assert answer["errors"][0]["extensions"]["code"] in ("OVERLOADED", "TIMEOUT")
            assert time.monotonic() < until, answer
            await asyncio.sleep(0.02)
        assert answer["data"]["changeUserSegments"]["added"] == ["A"]
        self.acknowledged.append(user)
        for freshness in ("LATEST", "CACHED"):
            self.stale += await slugs(self.client, user, freshness) != ["A"]


@pytest.fixture
async def pair(tmp_path: Path, cluster: Path) -> AsyncIterator[Pair]:
    primary = Cluster(tmp_path / "a", prepared=cluster)
    await primary.start()
    standby = await primary.clone_as_standby(tmp_path / "b")
    yield Pair(primary, standby)
    await primary.end()
    await standby.end()


@pytest.mark.parametrize("fault", ["frozen", pytest.param("killed", marks=pytest.mark.soak)])
async def test_both_writes_and_reads_leave_the_server_that_is_not_the_primary_any_more(
    serve: Serve, pair: Pair, tmp_path: Path, record_property: Callable[[str, object], None], fault: str
) -> None:
    old, new = pair.primary, pair.standby
    async with serve(database_url=pair.url) as client:
        await create(client, "A")
        writing = Writing(client)
        while len(writing.acknowledged) < 20:
            await writing.one()
        going_on = asyncio.create_task(writing.go_on())

        if fault == "killed":
            await old.stop("kill")
        else:
            old.freeze()
        await new.promote()
        before, promoted = len(writing.acknowledged), time.monotonic()
        while len(writing.acknowledged) == before:
            assert time.monotonic() - promoted < SECONDS
            await asyncio.sleep(0.01)

        record_property("printed", f"{fault}: written to again {time.monotonic() - promoted:.2f} s after the promotion")

        # It comes back, and answers whoever asks.
        if fault == "killed":
            old.options["default_transaction_read_only"] = "on"
            await old.start()
        else:
            old.thaw()
        back = len(writing.acknowledged)
        while len(writing.acknowledged) < back + 40 or await old.ask(USERS):
            assert time.monotonic() - promoted < 2 * SECONDS, await old.ask(USERS)
            await asyncio.sleep(0.01)
        going_on.cancel()
        assert await old.ask(USERS) == []
        assert writing.stale == 0

        rows = await new.ask("SELECT idempotency_key FROM operations WHERE idempotency_key LIKE 'key-of-user-%'")
        assert {f"key-of-{user}" for user in writing.acknowledged} - {key for (key,) in rows} == set()
        # Who looks once finds it, too.
        assert await verified(pair.url, tmp_path / "files") == []


@pytest.mark.soak
async def test_a_server_of_the_past_is_not_gone_back_to(serve: Serve, pair: Pair) -> None:
    old, new = pair.primary, pair.standby
    async with serve(database_url=pair.url) as client:
        await create(client, "A")
        old.freeze()
        await new.promote()
        writing = Writing(client)
        await writing.one()
        # Nobody has told it, and so it would take writes.
        old.thaw()
        await old.set("synchronous_standby_names", "")
        await new.stop("kill")
        answer = await client.post(CHANGE, {"input": {"userId": 7, "add": ["A"]}, "key": "in-the-past"})
        assert answer["errors"][0]["extensions"]["code"] == "OVERLOADED"
        assert await old.ask("SELECT count(*) FROM operations WHERE idempotency_key IS NOT NULL") == [(1,)]
        await new.start()
        await writing.one(SECONDS)
        assert len(await new.ask("SELECT FROM operations WHERE idempotency_key LIKE 'key-of-user-%'")) == 2


@dataclass
class Name:
    """A name for one of several servers: connections stay with the one that they were made to."""

    port: int
    tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        there, back = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            async with beside(_copy(there, writer)):
                await _copy(reader, back)
        finally:
            for each in (back, writer):
                each.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while sent := await reader.read(65_536):
            writer.write(sent)
            await writer.drain()
    writer.close()


async def test_behind_one_name_reads_leave_a_read_only_server_together_with_writes(serve: Serve, pair: Pair) -> None:
    old, new = pair.primary, pair.standby
    name = Name(old.port)
    async with await asyncio.start_server(name.pass_on, "127.0.0.1", 0) as listening:
        url = make_url(old.url).set(port=listening.sockets[0].getsockname()[1]).render_as_string()
        async with serve(database_url=url) as client:
            await create(client, "A")
            writing = Writing(client)
            for _ in range(5):
                await writing.one()
            await old.demote_read_only(keep_connections=True)
            await new.promote()
            name.port = new.port
            await writing.one(SECONDS)
            for _ in range(10):
                await writing.one()
            assert writing.stale == 0
            for user in writing.acknowledged:
                assert await slugs(client, user, "LATEST") == ["A"]
        for task in name.tasks:
            task.cancel()
        await asyncio.gather(*name.tasks, return_exceptions=True)


@pytest.mark.soak  # a mutation's patience is long
async def test_without_its_standby_nothing_is_acknowledged_and_a_retry_neither(serve: Serve, pair: Pair) -> None:
    async with serve(database_url=pair.url) as client:
        await create(client, "A")
        await pair.standby.stop("kill")
        change = {"input": {"userId": 7, "add": ["A"]}, "key": "nowhere-else"}
        answer = await client.post(CHANGE, change)
        assert answer["errors"][0]["extensions"]["code"] == "TIMEOUT"
        for _ in range(2):
            refused = (await client.ask(CHANGE, **change))["changeUserSegments"]
            assert [error["code"] for error in refused["userErrors"]] == ["IDEMPOTENCY_IN_PROGRESS"]
        assert await slugs(client, 7, "LATEST") == []
        await pair.standby.start()
        acknowledged: list[str] = []
        until = time.monotonic() + SECONDS
        while not acknowledged and time.monotonic() < until:
            acknowledged = (await client.ask(CHANGE, **change))["changeUserSegments"]["added"]
        assert (acknowledged, await slugs(client, 7, "LATEST")) == (["A"], ["A"])
        assert await pair.primary.ask("SELECT count(*) FROM membership_events") == [(1,)]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://someone:s3cret@/segmentql?host=db-1:5432&host=db-2",
        "postgresql://someone:s3cret@/segmentql?host=db-1:5432&host=db-2:port",
        "postgresql://someone:s3cret@/segmentql?host=db-1:5432&host=db-2:5432&target_session_attrs=standby",
    ],
)
def test_several_servers_are_refused_at_the_start_when_they_are_named_wrongly(url: str) -> None:
    with pytest.raises(StartError) as refused:
        from_environ({"SEGMENTQL_DATABASE_URL": url, "SEGMENTQL_REDIS_URL": "redis://cache"})
    assert str(refused.value).startswith("SEGMENTQL_DATABASE_URL is not usable: ")


def test_several_servers_may_be_named() -> None:
    url = "postgresql://segmentql@/segmentql?host=db-1:5432&host=db-2:5432&target_session_attrs=read-write"
    found = from_environ({"SEGMENTQL_DATABASE_URL": url, "SEGMENTQL_REDIS_URL": "redis://cache"})
    assert found.database_url == url
