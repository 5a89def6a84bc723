"""Tasks that are watched to their end, and how subscriptions end that nobody wants, reads or serves any more."""

import asyncio
import json
import signal
import socket as sockets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest
from background import ask_for_report
from callers import a_token, bearing, caller, revoke
from conftest import Client, Serve
from operations import change, create
from prometheus_client import REGISTRY
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine
from subscribing import TASK, USER, Socket, connected, socket, stream
from test_bulk import add
from test_shutdown import Start, start, until
from websockets.exceptions import ConnectionClosedError

from resolvers import watching
from resolvers.subscribing import Subscriptions
from server import app, known_tokens, sessions, websocket_protocol, websockets
from server.authentication import looked_up
from server.embedded import Servers

__all__ = ["start"]
# Some 40 kB for each message.
LARGE = (
    "subscription { userChanged(id: 7) { resync "
    + " ".join(f"a{number}: user {{ segments {{ slug description createdAt updatedAt }} }}" for number in range(29))
    + " } }"
)


async def test_a_task_is_told_of_until_its_end(serve: Serve, engine: AsyncEngine) -> None:
    async with serve(serve_tasks=1) as client, socket(client) as subscriber:
        task_id = (await ask_for_report(client))["task"]["id"]
        await subscriber.subscribe(TASK, id=task_id)
        states = []
        while (message := await subscriber.receive())["type"] == "next":
            states.append(message["payload"]["data"]["taskUpdated"])
        assert message == {"type": "complete", "id": "1"}
        assert states[-1] == {"id": task_id, "status": "SUCCEEDED", "rowsDone": 0, "progress": None}
        statuses = [state["status"] for state in states]
        assert statuses == sorted(statuses, key=["QUEUED", "RUNNING", "SUCCEEDED"].index)
        # Of one that has ended there is only that.
        async with stream(client, TASK, id=task_id) as events:
            assert await events.next() == ("next", {"data": {"taskUpdated": states[-1]}})
            assert await events.next() == ("complete", None)


async def test_a_task_that_is_called_off_is_told_of_at_once(client: Client) -> None:
    async with socket(client) as subscriber:
        task_id = (await ask_for_report(client))["task"]["id"]
        await subscriber.subscribe(TASK, id=task_id)
        assert (await subscriber.next())["taskUpdated"]["status"] == "QUEUED"
        cancel = 'mutation ($id: ID!) { cancelTask(id: $id, idempotencyKey: "12345678") { replayed } }'
        await client.ask(cancel, id=task_id)
        assert (await subscriber.next())["taskUpdated"]["status"] == "CANCELED"
        assert await subscriber.receive() == {"type": "complete", "id": "1"}


async def test_the_tasks_of_others_are_nobodys(serve: Serve, engine: AsyncEngine) -> None:
    async with serve(authentication="required") as client:
        async with caller(client, await a_token(engine, name="one")) as one:
            task_id = (await ask_for_report(one))["task"]["id"]
        other = await a_token(engine, name="other")
        async with socket(client, {"token": other.text}) as subscriber:
            for wrong in (task_id, "00000000-0000-0000-0000-000000000000", "7"):
                await subscriber.subscribe(TASK, id=wrong)
                message = await subscriber.receive()
                assert (message["type"], message["payload"][0]["message"], message["payload"][0]["extensions"]) == (
                    "error",
                    "Argument id: you have no such task.",
                    {"code": "BAD_USER_INPUT", "argument": "id"},
                )
        async with stream(client, TASK, bearing(other), id=task_id) as events:
            name, answer = await events.next()
            assert (name, answer["errors"][0]["extensions"]["code"]) == ("next", "BAD_USER_INPUT")
            assert await events.next() == ("complete", None)


@asynccontextmanager
async def narrow(client: Client) -> AsyncIterator[sockets.socket]:
    """A connection of somebody who can be sent little before it is read."""
    with sockets.socket() as connection:
        connection.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4_096)
        connection.setblocking(False)
        url = client.http.base_url
        await asyncio.get_running_loop().sock_connect(connection, (url.host, url.port))
        yield connection


async def change_often(client: Client, times: int) -> None:
    await create(client, "A", *(f"SEGMENT_{number:030}" for number in range(10)))
    await change(client, 7, add=[f"SEGMENT_{number:030}" for number in range(10)])
    for turn in range(times):
        await change(client, 7, add=["A"][turn % 2 :], remove=["A"][: turn % 2])


@pytest.mark.parametrize("most", [2, 1_000])
async def test_who_does_not_read_is_disconnected(client: Client, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Too many messages wait; or one for too long."""
    monkeypatch.setattr(watching, "MOST_MESSAGES", most)
    # Who begins to read before that learns why.
    monkeypatch.setattr(websocket_protocol, "LAST_SECONDS", 60)
    monkeypatch.setattr(sessions, "SEND_SECONDS", 0.5 if most > 100 else 60)
    dropped = dropped_so_far()
    asked = json.dumps({"query": LARGE}).encode()
    async with (
        narrow(client) as slow,
        narrow(client) as listener,
        connected(client, sock=slow, max_queue=1) as subscriber,
    ):
        await subscriber.send("connection_init")
        assert await subscriber.receive() == {"type": "connection_ack"}
        await subscriber.subscribe(LARGE)
        request = (
            b"POST /graphql HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(asked), asked)
        )
        await asyncio.get_running_loop().sock_sendall(listener, request)
        await change_often(client, 30)
        # Everybody else is served as before.
        async with socket(client) as other:
            await other.subscribe(USER, id=7)
            assert (await other.next())["userChanged"]["resync"]
        assert await until(lambda: dropped_so_far() >= dropped + 2)
        await cut(listener)
        assert await drained(subscriber) == (4408, "Messages are not read fast enough: connect again")


def dropped_so_far() -> float:
    return REGISTRY.get_sample_value("segmentql_subscribers_dropped_total") or 0.0


async def cut(connection: sockets.socket) -> None:
    """Read what is still there, which is not all, and does not end as an answer does."""
    loop, read = asyncio.get_running_loop(), b""
    async with asyncio.timeout(10):
        with suppress(ConnectionResetError):
            while more := await loop.sock_recv(connection, 65_536):
                read += more
    assert read.startswith(b"HTTP/1.1 200 OK")
    assert read.count(b"event: next") < 10
    assert not read.endswith(b"0\r\n\r\n")


async def drained(subscriber: Socket) -> tuple[int | None, str | None]:
    async with asyncio.timeout(10):
        with suppress(ConnectionClosedError):
            async for _ in subscriber.connection:
                pass
        return await subscriber.closed()


async def test_nothing_is_watched_when_all_have_left(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    hubs: list[Subscriptions] = []

    class Noted(Subscriptions):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            hubs.append(self)

    monkeypatch.setattr(app, "Subscriptions", Noted)
    async with serve() as client:
        task_id = (await ask_for_report(client))["task"]["id"]
        (hub,) = hubs
        async with socket(client) as subscriber, stream(client, USER, id=8) as events:
            await events.next()
            await subscriber.subscribe(USER, 1, id=7)
            await subscriber.subscribe(TASK, 2, id=task_id)
            await subscriber.receive()
            await subscriber.receive()
            assert (len(hub.users), len(hub.tasks)) == (2, 1)
            await subscriber.send("complete", id="1")
            assert await until(lambda: len(hub.users) == 1)
        assert await until(lambda: not len(hub.users) and not len(hub.tasks) and not hub._counts)


async def test_who_asks_again_does_not_hold_up_a_process_that_leaves(start: Start) -> None:
    process = start()
    async with httpx.AsyncClient(base_url=process.url, timeout=30) as http:
        client = Client(http)
        async with stream(client, USER, id=7) as events, socket(client) as subscriber:
            assert (await events.next())[0] == "next"
            # This connection stays, and is not used for anything just now.
            assert (await client.post("{ user(id: 7) { id } }")) == {"data": {"user": {"id": "7"}}}
            began = asyncio.get_running_loop().time()
            process.process.send_signal(signal.SIGTERM)
            assert await events.next() == ("", None)
            async with stream(client, USER, id=7) as again:
                error = json.loads(await again.response.aread())["errors"][0]
                assert (again.response.status_code, error["extensions"]) == (503, {"code": "OVERLOADED"})
                assert again.response.headers["connection"] == "close"
            assert (await subscriber.closed())[0] == 1012
            assert await process.ended() == 0
            assert asyncio.get_running_loop().time() - began < 3
    assert "Traceback" not in process.log.read_text()


async def test_who_may_not_use_channels_of_redis_uses_the_rest(
    serve: Serve, servers: Servers, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    # Channels are none of what a new user may use.
    rights: dict[str, Any] = {"keys": ["segmentql:*"], "categories": ["+@all"]}
    await redis.acl_setuser("silent", enabled=True, passwords="+its-password", **rights)
    try:
        async with (
            serve(redis_url=servers.redis_url.replace("://", "://silent:its-password@")) as client,
            serve() as elsewhere,
            socket(client) as subscriber,
            socket(elsewhere) as other,
        ):
            await create(client, "A", "B")
            for each in (subscriber, other):
                await each.subscribe(USER, id=7)
                assert (await each.next())["userChanged"]["resync"]
            await change(elsewhere, 7, add=["A"])
            async with asyncio.timeout(5):
                assert (await subscriber.next())["userChanged"]["events"][0]["slug"] == "A"
            # So many that their lists are removed by a script.
            left = REGISTRY.get_sample_value("segmentql_redis_left_total")
            await add(client, "B", list(range(200)))
            assert REGISTRY.get_sample_value("segmentql_redis_left_total") == left
            async with asyncio.timeout(5):
                assert (await subscriber.next())["userChanged"]["events"][0]["slug"] == "B"
    finally:
        await redis.acl_deluser("silent")
    (refusal,) = [record.getMessage() for record in caplog.records if record.name == "db.channels"]
    assert "NOPERM" in refusal


async def test_a_look_at_the_tokens_that_fails_is_not_the_last(
    serve: Serve, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sessions, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(known_tokens, "FRESH_SECONDS", 0.2)
    failures = [RuntimeError("nobody has expected this")]

    async def failing(*args: Any) -> Any:
        if failures:
            raise failures.pop()
        return await looked_up(*args)

    monkeypatch.setattr(sessions, "looked_up", failing)
    async with serve(authentication="required") as client:
        token = await a_token(engine, "read")
        async with socket(client, {"token": token.text}) as subscriber:
            await revoke(engine, token)
            assert await subscriber.closed() == (4403, "Forbidden")
    assert [record.name for record in caplog.records if record.levelname == "ERROR"] == ["server.sessions"]


async def test_what_fails_unexpectedly_is_told_and_logged(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError("nobody has expected this")

    async with socket(client) as subscriber:
        with monkeypatch.context() as patched:
            patched.setattr(websockets, "_refused", failing)
            await subscriber.subscribe(USER, id=7)
            message = await subscriber.receive()
        (error,) = message["payload"]
        assert error["extensions"]["code"] == "INTERNAL_SERVER_ERROR"
        (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
        assert error["extensions"]["id"] in record.getMessage()
        await subscriber.subscribe(USER, id=7)
        assert (await subscriber.next())["userChanged"]["resync"]


async def test_channels_are_listened_to_again_after_a_failure(
    serve: Serve, redis: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    heard, failures = Subscriptions._heard, [RuntimeError("nobody has expected this")]

    def failing(hub: Subscriptions, channel: str | None) -> None:
        if failures:
            raise failures.pop()
        heard(hub, channel)

    monkeypatch.setattr(Subscriptions, "_heard", failing)
    async with serve() as client, socket(client) as subscriber:
        await subscriber.subscribe(USER, id=7)
        assert (await subscriber.next())["userChanged"]["resync"]
        async with asyncio.timeout(5):
            while failures or (await redis.pubsub_numsub("segmentql:catalogue-changed"))[0][1] != 1:
                await asyncio.sleep(0.02)
    assert [record.name for record in caplog.records if record.levelname == "ERROR"] == ["db.channels"]


async def test_who_subscribes_is_told_that_the_process_leaves(start: Start) -> None:
    process = start()
    async with httpx.AsyncClient(base_url=process.url, timeout=30) as http:
        client = Client(http)
        async with socket(client) as subscriber, stream(client, USER, id=7) as events:
            await subscriber.subscribe(USER, id=7)
            assert (await subscriber.next())["userChanged"]["resync"]
            assert (await events.next())[0] == "next"
            began = asyncio.get_running_loop().time()
            process.process.send_signal(signal.SIGTERM)
            assert await events.next() == ("", None)
            assert (await subscriber.closed())[0] == 1012
            assert await process.ended() == 0
            assert asyncio.get_running_loop().time() - began < 3
    assert "Traceback" not in process.log.read_text()
