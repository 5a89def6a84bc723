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
from callers import a_token, bearing, caller
from conftest import Client, Serve
from operations import change, create
from sqlalchemy.ext.asyncio import AsyncEngine
from subscribing import TASK, USER, Socket, connected, socket, stream
from test_shutdown import Start, start
from websockets.exceptions import ConnectionClosedError

from resolvers import watching
from resolvers.subscribing import Subscriptions
from server import app, streams, websockets

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
    for module in (websockets, streams):
        monkeypatch.setattr(module, "SEND_SECONDS", 0.5 if most > 100 else 60)
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
        await cut(listener)
        code, reason = await drained(subscriber)
        assert (code, reason) in (
            (4408, "Messages are not read fast enough: connect again"),
            (1006, ""),
        )


async def cut(connection: sockets.socket) -> None:
    """Read what is still there, which is not all, and does not end as an answer does."""
    await asyncio.sleep(1)
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
            assert await until_empty(lambda: len(hub.users) == 1)
        assert await until_empty(lambda: not len(hub.users) and not len(hub.tasks) and not hub._counts)


async def until_empty(condition: Any) -> bool:
    for _ in range(500):
        if condition():
            return True
        await asyncio.sleep(0.01)
    return False


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
