"""Who may subscribe, over what, to how much, and for how long."""

import asyncio
import json
from typing import Any

import pytest
from callers import a_token, bearing, revoke
from conftest import Client, Serve
from connecting import exchange
from sqlalchemy.ext.asyncio import AsyncEngine
from subscribing import USER, Socket, connected, socket, stream
from test_logs import Captured, log
from websockets.exceptions import InvalidStatus

from server import known_tokens, sessions

__all__ = ["log"]
SECURE = {"authentication": "required"}
LISTS_OF_CLIENTS = [
    "application/graphql-response+json, application/graphql+json, application/json, text/event-stream, multipart/mixed",
    "application/json, multipart/mixed",
    "application/graphql-response+json,application/json;q=0.9",
    "*/*",
    "text/event-stream;q=0.5, application/json",
]
ASKED = {"query": "{ user(id: 7) { id } }"}


async def refused(subscriber: Socket) -> dict[str, Any]:
    """The one error that an operation ends with."""
    message = await subscriber.receive()
    assert message["type"] == "error", message
    (error,) = message["payload"]
    found: dict[str, Any] = error
    return found


async def test_who_shows_no_good_token_is_not_let_in(serve: Serve, engine: AsyncEngine) -> None:
    async with serve(**SECURE) as client:
        for payload in (None, {"Authorization": "Bearer wrong"}, {"token": "wrong"}, {"Authorization": 7}):
            async with connected(client) as subscriber:
                await subscriber.send("connection_init", **({} if payload is None else {"payload": payload}))
                assert await subscriber.closed() == (4403, "Forbidden")
        async with connected(client) as subscriber:
            await subscriber.subscribe(USER, id=7)
            assert await subscriber.closed() == (4401, "Unauthorized")
        token = await a_token(engine, "read")
        for payload in ({"Authorization": f"Bearer {token.text}"}, {"token": token.text}):
            async with socket(client, payload) as subscriber:
                await subscriber.subscribe(USER, id=7)
                assert (await subscriber.next())["userChanged"]["resync"]
        async with socket(client, additional_headers=bearing(token)) as subscriber:
            await subscriber.subscribe('mutation { cancelTask(id: 1, idempotencyKey: "12345678") { replayed } }')
            assert (await refused(subscriber))["extensions"] == {"code": "FORBIDDEN"}


async def test_wrong_tokens_count_as_failures_to_log_in(serve: Serve, engine: AsyncEngine) -> None:
    async with serve(**SECURE, login_failures=2) as client:
        for _ in range(3):
            async with connected(client) as subscriber:
                await subscriber.send("connection_init", payload={"token": "guessed"})
                assert await subscriber.closed() == (4403, "Forbidden")
        assert (await client.http.post("/graphql", headers=bearing("guessed"), json=ASKED)).status_code == 429


@pytest.mark.parametrize("seconds", [None, 1.5])
async def test_a_token_that_is_good_no_more_ends_its_connections(
    serve: Serve, engine: AsyncEngine, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was revoked, or has expired."""
    monkeypatch.setattr(sessions, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(known_tokens, "FRESH_SECONDS", 0.2)
    async with serve(**SECURE) as client:
        token = await a_token(engine, seconds=seconds)
        async with (
            socket(client, {"token": token.text}) as subscriber,
            stream(client, USER, bearing(token), id=7) as events,
        ):
            await subscriber.subscribe(USER, id=7)
            assert (await subscriber.next())["userChanged"]["resync"]
            assert (await events.next())[0] == "next"
            if seconds is None:
                await revoke(engine, token)
            assert await subscriber.closed() == (4403, "Forbidden")
            name, answer = await events.next()
            assert (name, answer["errors"][0]["extensions"]) == ("next", {"code": "UNAUTHENTICATED"})
            assert await events.next() == ("complete", None)


async def test_pages_of_other_origins_may_not_connect(serve: Serve) -> None:
    async with serve(cors_origins=("https://app.example.com",)) as client:
        own = str(client.http.base_url).rstrip("/")
        for origin in (own, "https://app.example.com"):
            async with socket(client, origin=origin):
                pass
        with pytest.raises(InvalidStatus) as refusal:
            async with connected(client, origin="https://elsewhere.example.com"):
                pass
        assert refusal.value.response.status_code == 403
        with pytest.raises(InvalidStatus) as refusal:
            async with connected(client, additional_headers={"X-Forwarded-For": "192.0.2.1"}):
                pass
        assert refusal.value.response.status_code == 403


async def test_with_a_token_pages_of_other_origins_may_ask_and_may_not_connect(
    serve: Serve, engine: AsyncEngine
) -> None:
    elsewhere = "https://elsewhere.example.com"
    async with serve(**SECURE, public_url="https://segments.example.com") as client:
        token = await a_token(engine, "read")
        response = await client.http.post("/graphql", json=ASKED, headers={**bearing(token), "Origin": elsewhere})
        assert response.status_code == 200
        with pytest.raises(InvalidStatus) as refusal:
            async with connected(client, origin=elsewhere, additional_headers=bearing(token)):
                pass
        assert refusal.value.response.status_code == 403
        for origin in (str(client.http.base_url).rstrip("/"), "https://segments.example.com", None):
            async with socket(client, {"token": token.text}, origin=origin):
                pass


async def test_only_the_one_protocol_is_spoken(client: Client) -> None:
    async with connected(client, protocol="graphql-transport-ws") as subscriber:
        await subscriber.connection.send("[]")
        assert await subscriber.closed() == (4400, "WebSocket message must be valid JSON")
    async with connected(client, protocol=None) as subscriber:
        assert await subscriber.closed() == (4406, "Subprotocol not acceptable")


async def test_what_only_looks_like_a_websocket_is_refused(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    host = f"Host: {client.http.base_url.netloc.decode()}"
    for path, headers, status in (
        ("/graphql", "Sec-WebSocket-Version: 13", b"400"),
        ("/graphql", "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: short", b"400"),
        ("/nowhere", "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", b"403"),
    ):
        request = f"GET {path} HTTP/1.1\r\n{host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{headers}\r\n\r\n"
        answer = await exchange(client, request.encode())
        assert answer.startswith(b"HTTP/1.1 " + status), answer
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_message_that_is_none_ends_the_connection(client: Client) -> None:
    for text, code in (
        ('{"type": "subscribe", "id": [], "payload": {}}', 4400),
        ('{"type": "subscribe", "id": "1", "payload": {"query": 7}}', 4400),
        ('{"type": "subscribe", "id": "1"}', 4400),
        ('{"type": "unknown"}', 4400),
        ("null", 4400),
        ("{", 4400),
        (" " * 70_000, 1009),
    ):
        async with socket(client) as subscriber:
            await subscriber.connection.send(text)
            assert (await subscriber.closed())[0] == code


async def test_queries_and_mutations_go_over_the_same_connection(client: Client) -> None:
    async with socket(client) as subscriber:
        await subscriber.subscribe("{ user(id: 7) { id } }")
        assert await subscriber.next() == {"user": {"id": "7"}}
        assert await subscriber.receive() == {"type": "complete", "id": "1"}
        await subscriber.subscribe('mutation { cancelTask(id: 1, idempotencyKey: "12345678") { userErrors { code } } }')
        assert await subscriber.next() == {"cancelTask": {"userErrors": [{"code": "TASK_NOT_FOUND"}]}}
        assert await subscriber.receive() == {"type": "complete", "id": "1"}
        for query, code in (("{ nothing }", "GRAPHQL_VALIDATION_FAILED"), ("{", "GRAPHQL_PARSE_FAILED")):
            await subscriber.subscribe(query)
            assert (await refused(subscriber))["extensions"] == {"code": code}
        await subscriber.subscribe(USER, id="")
        assert (await refused(subscriber))["extensions"] == {"code": "BAD_USER_INPUT", "argument": "id"}
        await subscriber.subscribe(USER)
        assert (await refused(subscriber))["extensions"] == {"code": "BAD_USER_INPUT"}
        await subscriber.send("ping")
        assert await subscriber.receive() == {"type": "pong"}


async def test_what_names_no_operation_is_the_callers_mistake(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    headers = {"Accept": "text/event-stream"}
    async with socket(client) as subscriber:
        for asked in ({}, {"query": None}, {"query": ""}, {"query": "query A { __typename }", "operationName": "B"}):
            await subscriber.send("subscribe", id="1", payload=asked)
            error = await refused(subscriber)
            assert error["extensions"] == {"code": "BAD_USER_INPUT"}
            response = await client.http.post("/graphql", json=asked, headers=headers)
            told = json.dumps({"errors": [error]}, separators=(",", ":"))
            assert response.text == f"event: next\ndata: {told}\n\nevent: complete\ndata: \n\n"
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_stream_is_logged_with_its_method_and_its_status(
    serve: Serve, engine: AsyncEngine, log: Captured
) -> None:
    async with serve(**SECURE, max_subscriptions_per_client=1) as client:
        headers = {"Accept": "text/event-stream", **bearing(await a_token(engine, "read"))}
        changing = {"query": 'mutation { cancelTask(id: 1, idempotencyKey: "12345678") { replayed } }'}
        assert (await client.http.post("/graphql", json=changing, headers=headers)).status_code == 403
        async with stream(client, USER, headers, id=7) as events:
            await events.next()
            assert (await client.http.post("/graphql", json=ASKED, headers=headers)).status_code == 429
        while (response := await client.http.get("/graphql", params=ASKED, headers=headers)).status_code == 429:
            await asyncio.sleep(0.02)
        assert response.status_code == 200
    lines = [(line["method"], line["status"], line.get("code")) for line in log.requests]
    assert [lines[0], lines[1], lines[2], lines[-1]] == [
        ("POST", 403, "FORBIDDEN"),
        ("POST", 200, None),
        ("POST", 429, "LIMIT_EXCEEDED"),
        ("GET", 200, None),
    ]


@pytest.mark.parametrize("accept", LISTS_OF_CLIENTS)
async def test_whoever_names_streams_last_gets_one_answer(client: Client, accept: str) -> None:
    # The second is answered by the short way.
    for _ in range(2):
        response = await client.http.post("/graphql", json=ASKED, headers={"Accept": accept})
        assert response.headers["content-type"].startswith(("application/json", "application/graphql-response+json"))
        assert response.json() == {"data": {"user": {"id": "7"}}}


async def test_whoever_names_streams_first_gets_one_also_of_a_query(client: Client) -> None:
    for accept in ("text/event-stream", "text/event-stream, application/json", "text/event-stream, */*;q=0.1"):
        for _ in range(2):
            response = await client.http.post("/graphql", json=ASKED, headers={"Accept": accept})
            assert response.text == 'event: next\ndata: {"data":{"user":{"id":"7"}}}\n\nevent: complete\ndata: \n\n'
            assert "connection" not in response.headers
    # Its connection takes little at a time from then on.
    async with stream(client, USER, id=7) as events:
        assert events.response.headers["connection"] == "close"
    headers, query = {"Accept": "text/event-stream"}, ASKED["query"]
    response = await client.http.get("/graphql", params={"query": query}, headers=headers)
    assert response.text.startswith("event: next\ndata: {")
    changing = {"query": 'mutation { cancelTask(id: 1, idempotencyKey: "12345678") { replayed } }'}
    response = await client.http.get("/graphql", params=changing, headers=headers)
    name, data = response.text.split("\n")[:2]
    assert (name, "errors" in json.loads(data.removeprefix("data: "))) == ("event: next", True)


async def test_a_subscription_is_no_request_with_one_answer(client: Client) -> None:
    asked = {"query": 'subscription { userChanged(id: "7") { resync } }'}
    for _ in range(3):
        for response in (
            await client.http.get("/graphql", params=asked),
            await client.http.post("/graphql", json=asked),
        ):
            (error,) = response.json()["errors"]
            assert (response.status_code, error["extensions"]) == (400, {"code": "BAD_USER_INPUT"})
            assert "text/event-stream" in error["message"]


async def test_there_are_no_more_subscriptions_than_allowed(serve: Serve) -> None:
    async with serve(max_subscriptions_per_client=3) as client, socket(client) as one, socket(client) as other:
        for number in range(3):
            await one.subscribe(USER, number, id=number)
            assert (await one.next())["userChanged"]["resync"]
        await other.subscribe(USER, id=7)
        assert (await refused(other))["extensions"] == {"code": "LIMIT_EXCEEDED"}
        await one.send("complete", id="0")
        while (await _answer(other))["type"] != "next":
            await asyncio.sleep(0.02)


async def test_there_are_no_more_connections_than_allowed(serve: Serve) -> None:
    async with serve(max_subscriptions_per_client=2) as client, socket(client), socket(client):
        async with connected(client) as third:
            await third.send("connection_init")
            assert (await third.closed())[0] == 1013
        async with stream(client, USER, id=7) as events:
            error = (await events.response.aread()).decode()
            assert (events.response.status_code, "LIMIT_EXCEEDED" in error) == (429, True)


async def _answer(subscriber: Socket) -> dict[str, Any]:
    await subscriber.subscribe(USER, 9, id=7)
    return await subscriber.receive()


async def test_a_connection_has_a_hundred_operations_at_the_most(client: Client) -> None:
    async with socket(client) as subscriber:
        for number in range(101):
            await subscriber.subscribe(USER, number, id=7)
        messages = [await subscriber.receive() for _ in range(101)]
        (error,) = [message for message in messages if message["type"] == "error"]
        assert (error["id"], error["payload"][0]["extensions"]) == ("100", {"code": "LIMIT_EXCEEDED"})


async def test_a_subscription_is_paid_for(serve: Serve) -> None:
    async with serve(rate_limit=1, rate_burst=200) as client, socket(client) as subscriber:
        query = (
            "subscription { userChanged(id: 7) { user { "
            + " ".join(f"a{number}: history(first: 100) {{ nodes {{ slug }} }}" for number in range(29))
            + " } } }"
        )
        for number in range(3):
            await subscriber.subscribe(query, number)
        messages = [await subscriber.receive() for _ in range(3)]
        (error,) = [message for message in messages if message["type"] == "error"]
        assert error["payload"][0]["extensions"]["code"] == "RATE_LIMITED"
