"""What is logged: enough to find out what happened, and nothing that is nobody's business."""

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
import secrets_in_logs
from comparing import Connection
from conftest import Serve
from operations import CHANGE, SEGMENTS, create, new_key
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

from db import tasks
from server.logs import formatter

USER = "user-whom-no-log-names"
NAMED = "query Where($id: ID!) { user(id: $id) { segments { slug } } }"


class Captured(logging.Handler):
    """Lines as a process writes them, in both formats."""

    def __init__(self) -> None:
        super().__init__()
        self.json: list[str] = []
        self.text: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.json.append(formatter("json").format(record))
        self.text.append(formatter("console").format(record))

    def lines(self, logger: str) -> list[dict[str, Any]]:
        return [line for line in map(json.loads, self.json) if line["logger"] == logger]

    @property
    def requests(self) -> list[dict[str, Any]]:
        return self.lines("server.requests")


@pytest.fixture
def log() -> Iterator[Captured]:
    captured, level = Captured(), logging.root.level
    captured.addFilter(lambda record: not record.name.startswith("http"))  # the clients of tests
    logging.root.addHandler(captured)
    logging.root.setLevel(logging.DEBUG)
    yield captured
    logging.root.setLevel(level)
    logging.root.removeHandler(captured)


@pytest.mark.parametrize("rate_limit", [0, 1_000])
async def test_each_line_has_the_id_of_its_own_request_whichever_connection_it_came_over(
    serve: Serve, log: Captured, rate_limit: int
) -> None:
    async with serve(rate_limit=rate_limit, rate_burst=1_000) as client:
        ids = []
        for _ in range(3):
            async with Connection(client) as one, Connection(client) as other:
                for connection in (one, other, one):
                    answer = await connection.post(json.dumps({"query": NAMED, "variables": {"id": "7"}}).encode())
                    ids.append(answer.header("x-request-id"))
    assert len(set(ids)) == 9
    assert [line["request_id"] for line in log.requests] == ids


async def test_a_request_is_one_line_that_says_what_became_of_it(serve: Serve, log: Captured) -> None:
    async with serve() as client:
        answered = await client.http.post("/graphql", json={"query": NAMED, "variables": {"id": "7"}})
        await client.http.post("/graphql", json={"query": NAMED, "variables": {"id": "7"}})
        await client.post("{")
    first, second, third = log.requests
    assert first.pop("duration_ms") > 0
    assert first.pop("timestamp").endswith("Z")
    assert (first.pop("cost"), first.pop("client")) == (1, "anonymous")
    assert first == {
        "level": "INFO",
        "logger": "server.requests",
        "event": "request",
        "request_id": answered.headers["X-Request-Id"],
        "method": "POST",
        "path": "/graphql",
        "status": 200,
        "bytes": len(answered.content),
        "outcome": "ok",
        "operation": "Where",
        "kind": "query",
        "document": hashlib.sha256(NAMED.encode()).hexdigest()[:12],
        "cache_hits": 0,
        "cache_misses": 1,
        "statements": first["statements"],
    }
    assert first["statements"] >= 1
    assert (second["cache_hits"], second["statements"], second["document"]) == (1, 0, first["document"])
    assert (third["outcome"], third["code"], "operation" in third) == ("refused", "GRAPHQL_PARSE_FAILED", False)


async def test_a_caller_may_choose_the_id_of_its_request(serve: Serve, log: Captured) -> None:
    given = ["a-1.b_C", "x" * 64, "x" * 65, "two words", 'quote"', ""]
    async with serve() as client:
        answers = [await client.http.get("/healthz", headers={"X-Request-Id": each}) for each in given]
    ids = [answer.headers["X-Request-Id"] for answer in answers]
    assert ids[:2] == given[:2]
    assert all(len(each) == 16 for each in ids[2:])
    assert len(set(ids)) == len(ids)
    assert [line["request_id"] for line in log.requests] == ids
    assert {line["level"] for line in log.requests} == {"DEBUG"}


async def test_nothing_that_is_nobodys_business_is_logged(serve: Serve, log: Captured) -> None:
    key, note = new_key(), "a-variable-of-a-caller"
    secrets_in_logs.remember(USER, note)
    bearer = {"Authorization": "Bearer what-a-caller-shows"}
    link = "/files/00000000-0000-0000-0000-000000000000"
    async with serve() as client:
        await create(client, "A")
        for query in (CHANGE, CHANGE.replace("added", "added nothing")):
            await client.http.post(
                "/graphql",
                json={"query": query, "variables": {"input": {"userId": USER, "add": ["A", note]}, "key": key}},
                headers=bearer,
            )
        await client.ask(SEGMENTS, id=USER)
        await client.http.get("/graphql", params={"query": NAMED, "variables": json.dumps({"id": USER})})
        await client.http.get(f"{link}?expires=1&signature=of-a-link")
        await client.http.put(f"{link}?expires=1&signature=of-a-link", content=b"1")
        await client.http.get("/a%0AWARNING%20forged:%20line")
    assert len(log.requests) == 8
    for secret in (USER, key, note, "what-a-caller-shows", "of-a-link", "signature"):
        assert not [line for line in log.json + log.text if secret in line]
    # What a caller chose begins no line of its own.
    assert not [line for line in log.json + log.text if "\n" in line]
    assert 'path="/a\\nWARNING forged: line"' in "\n".join(log.text)


async def test_slow_requests_and_failures_are_warnings(serve: Serve, log: Captured, engine: AsyncEngine) -> None:
    async with serve(slow_ms=50) as client:
        await client.ask("{ __typename }")  # it has started
        async with engine.begin() as tx:
            await tx.execute(text("LOCK TABLE memberships IN ACCESS EXCLUSIVE MODE"))
            asking = asyncio.create_task(client.post(NAMED, {"id": "7"}))
            await asyncio.sleep(0.1)
        await asking
    assert [(line["level"], line["event"]) for line in log.requests][-1] == ("WARNING", "slow request")
    assert log.requests[-1]["duration_ms"] >= 50


async def test_what_fails_at_many_places_of_a_request_is_one_line(
    serve: Serve, log: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets_in_logs.remember(USER)
    query = "{ " + " ".join(f'a{n}: task(id: "{UUID(int=n)}") {{ id }}' for n in range(20)) + " }"
    away = OperationalError("SELECT 1", {"id": USER}, OSError(f"It is away.\nDETAIL: {USER}\nWARNING forged: line"))
    away.connection_invalidated = True
    for error, said in (
        (away, "OVERLOADED at one and 19 more: OperationalError: It is away."),
        (KeyError("x"), "internal error {id} at one and 19 more"),
    ):

        async def fails(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(tasks, "by_id", fails)
        async with serve() as client:
            answer = await client.post(query)
        ids = {each["extensions"].get("id") for each in answer["errors"]}
        assert len(answer["errors"]) == 20
        (line,) = log.lines("server.errors")
        assert re.sub(r"\['a\d+'\]", "one", line["event"]) == said.format(id=ids.pop())
        assert not ids
        log.json.clear()


async def test_a_masked_error_is_found_by_its_id_and_by_its_request(
    serve: Serve, log: Captured, engine: AsyncEngine
) -> None:
    secrets_in_logs.remember(USER)
    async with serve() as client:
        await create(client, "A")
        async with engine.begin() as tx:
            await tx.execute(text(f"ALTER TABLE memberships ADD CONSTRAINT wrong CHECK (user_id <> '{USER}')"))
        try:
            answered = await client.http.post(
                "/graphql",
                json={"query": CHANGE, "variables": {"input": {"userId": USER, "add": ["A"]}, "key": new_key()}},
                headers={"Accept": "application/graphql-response+json"},
            )
        finally:
            async with engine.begin() as tx:
                await tx.execute(text("ALTER TABLE memberships DROP CONSTRAINT wrong"))
    (error,) = answered.json()["errors"]
    (line,) = log.lines("server.errors")
    assert error["extensions"]["id"] in line["event"]
    assert line["request_id"] == answered.headers["X-Request-Id"]
    assert 'violates check constraint "wrong"' in line["exception"]
    assert "Traceback" in line["exception"]
    # PostgreSQL adds the row, and in it the user.
    assert USER not in line["exception"]
    last = log.requests[-1]
    assert (last["outcome"], last["code"]) == ("failed", "INTERNAL_SERVER_ERROR")


def test_lines_for_people_are_plain_unless_a_terminal_is_there() -> None:
    record = logging.LogRecord("server.x", logging.WARNING, "", 0, "said %s", ("so",), None)
    assert formatter("console").format(record).endswith(" WARNING server.x: said so")
    assert "\x1b[33mWARNING\x1b[0m server.x: said so" in formatter("console", colours=True).format(record)


@pytest.mark.parametrize(
    "secret",
    [
        f"segmentql_{'a' * 12}_{'B' * 43}",
        "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln",
        "/files/1?expires=2&signature=3",
        "Authorization: Bearer 0123456789",
        new_key(),
        "remembered-by-a-test",
    ],
)
def test_a_secret_in_a_line_fails_the_test_that_logged_it(secret: str) -> None:
    secrets_in_logs.remember("remembered-by-a-test")
    logging.getLogger("server.requests").debug("there is %s in it", secret)
    (leaked,) = secrets_in_logs.found
    assert secret in leaked
    with pytest.raises(AssertionError, match="has a secret in it"):
        secrets_in_logs.pytest_runtest_teardown()
    assert secrets_in_logs.found == []
