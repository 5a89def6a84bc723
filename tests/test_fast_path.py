"""Requests on the short way: whatever happens on a connection, each is answered as it would be on the long one."""

import asyncio
import json
import logging
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from signal import SIGTERM
from typing import Any

import httpx
import pytest
from background import execute, process
from comparing import Answer, Connection, both, counted, posted
from conftest import Client, Serve
from operations import CREATE, HISTORY, SEGMENTS, change, new_key
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from server import documents, fast_protocol, middleware
from server.embedded import Servers

WAITING = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
LATEST = "query ($id: ID!) { user(id: $id) { segments(freshness: LATEST) { slug } } }"


def body(query: str = SEGMENTS, operation: str | None = None, **variables: Any) -> bytes:
    asked = {"query": query, "variables": variables}
    return json.dumps(asked if operation is None else asked | {"operationName": operation}).encode()


def users(answer: Answer) -> Any:
    return json.loads(answer.body)["data"]["user"]


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Of the answers that were asked of plans, how many were given by one."""
    return counted(monkeypatch)


@asynccontextmanager
async def stopped(engine: AsyncEngine, table: str = "memberships") -> AsyncIterator[Callable[[], Any]]:
    """Nobody can read the table until the block ends; what it is given waits until somebody tries to."""

    async def reached() -> None:
        for _ in range(500):
            if await execute(engine, WAITING):
                return
            await asyncio.sleep(0.01)
        raise AssertionError("nobody reads")

    async with engine.connect() as conn, conn.begin():
        await conn.execute(text(f"LOCK TABLE {table}"))
        yield reached


async def learned(connection: Connection, *asked: bytes) -> list[Answer]:
    """The answers of requests whose documents the server knows from now on."""
    return [await connection.post(each) for each in asked]


async def test_a_request_may_come_in_any_pieces(client: Client, planned: Counter[str]) -> None:
    async with Connection(client) as connection:
        (first,) = await learned(connection, body(id="7"))
        request = posted(body(id="7"))
        head = request.index(b"\r\n\r\n") + 4
        for cuts in ([head], [head - 2, head + 10], [head, len(request) - 1], list(range(1, len(request)))):
            for begin, end in zip([0, *cuts], [*cuts, len(request)], strict=True):
                connection.writer.write(request[begin:end])
                await connection.writer.drain()
                await asyncio.sleep(0)
            assert (await connection.answer()).comparable == first.comparable
    assert planned == {"plan": 4}


async def test_requests_that_are_sent_at_once_are_answered_in_their_order(
    client: Client, planned: Counter[str]
) -> None:
    unknown = '{ user(id: "slow") { id history { nodes { at } } } }'
    named = "query ($id: ID!) { user(id: $id) { id } }"
    create_a = body(CREATE, slug="A", description=None, key=new_key())
    async with Connection(client) as connection:
        await learned(connection, body(named, id=0))
        sent = [body(named, id=1), body(named, id=2), create_a, body(unknown), body(named, id=3), body(named, id=4)]
        connection.writer.write(b"".join(posted(each, X_Request_Id=f"r{n}") for n, each in enumerate(sent)))
        answers = [await connection.answer() for _ in sent]
        (after,) = await learned(connection, body(named, id=5))
    assert [answer.header("x-request-id") for answer in answers] == [f"r{n}" for n in range(6)]
    found = [json.loads(answer.body)["data"] for answer in answers]
    assert found[2].pop("createSegment")["segment"]["slug"] == "A"
    assert [each and each["user"]["id"] for each in found] == ["1", "2", {}, "slow", "3", "4"]
    assert users(after) == {"id": "5"}
    assert planned["plan"] == 2  # the first, and the last: the others wait for the one before


async def test_what_a_plan_does_not_expect_is_answered_on_the_same_connection(
    serve: Serve, planned: Counter[str]
) -> None:
    strange: list[Any] = [None, [], ["7"], 2.5, True, {"id": 7}, "", "\x07", "x" * 129]
    async with serve() as short, serve(fast_path="off") as long, both(short, long) as (one, other):
        kept = one.writer
        await learned(one, body(id="7"))
        for id_ in strange:
            sent = body(id=id_)
            assert (await one.post(sent)).comparable == (await other.post(sent)).comparable, id_
        assert users((await learned(one, body(id="7")))[0]) == {"segments": []}
        assert one.writer is kept
    assert planned["plan"] == 1


@pytest.mark.parametrize("variables", ["[]", "[1]", '""', '"x"', "0", "1", "false", "true", "null", '{"x": 1}'])
async def test_variables_are_an_object_or_nothing(serve: Serve, variables: str) -> None:
    sent = b'{"query": "{ user(id: 7) { id } }", "variables": %b}' % variables.encode()
    async with serve() as short, serve(fast_path="off") as long, both(short, long) as (one, other):
        await learned(one, body("{ user(id: 7) { id } }"))
        assert (await one.post(sent)).comparable == (await other.post(sent)).comparable


async def test_a_connection_ends_when_the_caller_says_so(serve: Serve) -> None:
    async with serve() as short, serve(fast_path="off") as long, both(short, long) as (one, other):
        await learned(one, body(id="7"))
        for headers in ({"Connection": "close"}, {"Connection": "keep-alive"}, {"Connection": "Keep-Alive, x"}):
            answers = [await each.post(body(id="7"), **headers) for each in (one, other)]
            assert answers[0].comparable == answers[1].comparable
        old = posted(body(id="7")).replace(b"HTTP/1.1", b"HTTP/1.0")
        for connection in (one, other):
            connection.writer.write(old)
            assert users(await connection.answer()) == {"segments": []}
            assert await connection.reader.read() == b""


async def test_a_body_that_comes_late_is_read_and_one_that_never_comes_is_not_waited_for(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_protocol, "BODY_SECONDS", 0.05)
    monkeypatch.setattr(middleware, "BODY_SECONDS", 1)
    request = posted(body(id="7"))
    async with Connection(client) as connection:
        (first,) = await learned(connection, body(id="7"))
        connection.writer.write(request[:-20])
        await asyncio.sleep(0.2)  # it has gone the long way meanwhile
        connection.writer.write(request[-20:])
        assert (await connection.answer()).comparable == first.comparable
        connection.writer.write(request + request[:-20])
        assert (await connection.answer()).comparable == first.comparable
        late = await connection.answer()
        assert (late.status, late.header("connection")) == (408, "close")


async def test_a_caller_that_leaves_is_not_missed(
    client: Client, engine: AsyncEngine, planned: Counter[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with Connection(client) as connection:
        await learned(connection, body(LATEST, id="7"), body(HISTORY, id="7"), body(LATEST, id="7"))
        async with stopped(engine) as reached:
            for asked in (body(LATEST, id="8"), body(LATEST, id="8")):
                async with Connection(client) as leaving:
                    leaving.writer.write(posted(asked))
                    await reached()
            async with Connection(client) as leaving:
                leaving.writer.write(posted(body(LATEST, id="8"))[:-10])
                await leaving.writer.drain()
        assert users((await learned(connection, body(LATEST, id="7")))[0]) == {"segments": []}
    assert [each for each in caplog.records if each.levelno >= logging.ERROR] == []
    assert planned["left"] == 0


async def test_a_caller_that_leaves_before_its_request_is_whole_holds_no_place(serve: Serve) -> None:
    async with serve(max_concurrent=1) as client, Connection(client) as connection:
        await learned(connection, body(id="7"), body(id="7"))
        for cut in (-10, -1, -len(body(id="7"))):
            async with Connection(client) as leaving:
                leaving.writer.write(posted(body(id="7"))[:cut])
                await leaving.writer.drain()
                await asyncio.sleep(0.05)  # it has been looked at
        statuses = []
        for _ in range(50):
            statuses.append((await connection.post(body(id="7"))).status)
            await asyncio.sleep(0.01)
    assert statuses == [200] * 50


async def test_what_nobody_understands_ends_the_connection_once_the_answer_is_sent(serve: Serve) -> None:
    async with serve() as short, serve(fast_path="off") as long, both(short, long) as (one, other):
        await learned(one, body(id="7"))
        found = []
        for connection in (one, other):
            connection.writer.write(posted(body(id="7")) + b"nonsense\r\n\r\n")
            found.append([(await connection.answer()).comparable, await connection.reader.read()])
    assert found[0] == found[1]


async def test_an_answer_that_takes_too_long_is_given_up(
    serve: Serve, engine: AsyncEngine, planned: Counter[str]
) -> None:
    late = {"execution_timeout": 1}
    async with serve(**late) as short, serve(fast_path="off", **late) as long, both(short, long) as (one, other):
        for asked, table in ((body(LATEST, id="7"), "memberships"), (body(HISTORY, id="7"), "membership_events")):
            await learned(one, asked, asked)
            async with stopped(engine, table):
                answers = await asyncio.gather(one.post(asked), other.post(asked))
            assert answers[0].comparable == answers[1].comparable
            assert b'"code":"TIMEOUT"' in answers[0].body
    assert planned == {"plan": 2, "left": 2}


async def test_headers_are_those_of_the_long_way(serve: Serve, planned: Counter[str]) -> None:
    accepted = (
        None,
        "*/*",
        "application/json",
        "application/graphql-response+json",
        "text/html",
        "application/json;q=0",
    )
    async with serve() as short, serve(fast_path="off") as long, both(short, long) as (one, other):
        await learned(one, body(id="7"))
        for accept in accepted:
            for given in ("mine-1", "not mine", None):
                headers = {"Accept": accept, "X_Request_Id": given}
                answers = [await each.post(body(id="7"), **headers) for each in (one, other)]
                assert answers[0].comparable == answers[1].comparable
                assert {name for name, _ in answers[0].headers} == {name for name, _ in answers[1].headers}
                ids = [answer.header("x-request-id") for answer in answers]
                assert ids == ["mine-1"] * 2 if given == "mine-1" else ids[0] != ids[1]
    assert planned["plan"] == 3 * 4


async def test_the_operation_that_is_named_is_the_one_that_is_answered(serve: Serve, planned: Counter[str]) -> None:
    two = 'query A { user(id: 1) { id } } query B { user(id: 2) { isIn(slug: "x") } } mutation C { __typename }'
    async with serve() as short, serve(fast_path="off") as long, both(short, long) as (one, other):
        for _ in range(2):
            for operation in ("A", "B", None, "D", "", "C"):
                sent = body(two, operation)
                assert (await one.post(sent)).comparable == (await other.post(sent)).comparable
    assert planned["plan"] >= 3


async def test_a_document_that_was_forgotten_is_learned_again(
    client: Client, planned: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "CACHED_CHARACTERS", 3 * len(SEGMENTS))
    async with Connection(client) as connection:
        for _ in range(3):
            await learned(connection, body(id="7"), body(id="7"))
            await learned(connection, *(body(f"{SEGMENTS} # {n}", id="8") for n in range(4)))
        assert users((await learned(connection, body(id="7")))[0]) == {"segments": []}
    assert planned == {"plan": 3}


async def test_a_large_answer_is_whole_however_slowly_it_is_read(client: Client, planned: Counter[str]) -> None:
    for slug in ("A", "B", "C"):
        await client.ask(CREATE, slug=slug, description="é" * 2_000, key=new_key())
    ids = [f"u{n}" for n in range(100)]
    for id_ in ids:
        await change(client, id_, add=["A", "B", "C"])
    query = "query ($ids: [ID!]!) { users(ids: $ids) { id segments { slug description } } }"
    async with Connection(client) as connection:
        (first,) = await learned(connection, body(query, ids=ids))
        assert len(first.body) > 1_000_000
        connection.reader._limit = 1_000  # type: ignore[attr-defined]  # it stops reading early
        connection.writer.write(posted(body(query, ids=ids)) * 5 + posted(body(id="7")))
        for _ in range(5):
            assert (await connection.answer()).comparable == first.comparable
        assert users(await connection.answer()) == {"segments": []}
    assert planned["plan"] >= 1


async def test_a_process_that_is_told_to_stop_answers_what_is_under_way(
    servers: Servers, engine: AsyncEngine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, urls = tmp_path_factory.mktemp("stopping"), (servers.database_url, servers.redis_url)
    command = [sys.executable, "-m", "server", "serve", "--port", "0"]
    async with process(folder, *urls, command, serve_tasks="0") as running:
        await running.says(r"serves on http://127.0.0.1:\d+/")
        found = re.search(r"serves on (http://127.0.0.1:\d+)/", running.log.read_text())
        assert found is not None
        async with httpx.AsyncClient(base_url=found[1]) as http, AsyncExitStack() as opened:
            asking = [await opened.enter_async_context(Connection(Client(http))) for _ in range(5)]
            await learned(asking[0], body(LATEST, id="7"), body(LATEST, id="7"))
            async with stopped(engine) as reached:
                for number, connection in enumerate(asking):
                    connection.writer.write(posted(body(LATEST, id=f"u{number}")))
                await reached()
                running.send(SIGTERM)
                await asyncio.sleep(0.5)  # it is known to be stopping long before the answers are there
            answers = [await connection.answer() for connection in asking]
            assert [users(answer) for answer in answers] == [{"segments": []}] * 5
            assert [answer.header("connection") for answer in answers] == ["close"] * 5
            assert running.process.wait(20) == 0
