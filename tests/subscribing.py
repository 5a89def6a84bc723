"""Subscribers, over WebSocket and as server-sent events, that say exactly what they mean to."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import websockets.asyncio.client
from conftest import Client
from websockets import Subprotocol
from websockets.asyncio.client import ClientConnection

SECONDS = 10
USER = """
    subscription ($id: ID!) {
        userChanged(id: $id) { resync events { slug action source } user { segments { slug } } }
    }
"""
TASK = "subscription ($id: ID!) { taskUpdated(id: $id) { id status rowsDone progress } }"


class Socket:
    """A client of graphql-transport-ws."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def send(self, type_: str, **message: object) -> None:
        await self.connection.send(json.dumps({"type": type_, **message}))

    async def receive(self) -> dict[str, Any]:
        async with asyncio.timeout(SECONDS):
            message: dict[str, Any] = json.loads(await self.connection.recv())
        return message

    async def subscribe(self, query: str, number: int = 1, **variables: object) -> None:
        await self.send("subscribe", id=str(number), payload={"query": query, "variables": variables})

    async def next(self) -> Any:
        """The next message's data, which has to be there."""
        message = await self.receive()
        assert message["type"] == "next", message
        assert "errors" not in message["payload"], message
        return message["payload"]["data"]

    async def closed(self) -> tuple[int | None, str | None]:
        async with asyncio.timeout(SECONDS):
            await self.connection.wait_closed()
        return self.connection.close_code, self.connection.close_reason


def url_of(client: Client) -> str:
    return str(client.http.base_url).replace("http:", "ws:").rstrip("/") + "/graphql"


@asynccontextmanager
async def connected(
    client: Client, *, protocol: str | None = "graphql-transport-ws", **options: Any
) -> AsyncIterator[Socket]:
    """A connection that was opened, and on which nothing was said."""
    protocols = None if protocol is None else [Subprotocol(protocol)]
    async with websockets.asyncio.client.connect(
        url_of(client), subprotocols=protocols, proxy=None, compression=None, close_timeout=1, **options
    ) as connection:
        yield Socket(connection)


@asynccontextmanager
async def socket(client: Client, payload: dict[str, Any] | None = None, **options: Any) -> AsyncIterator[Socket]:
    """A connection on which operations are taken."""
    async with connected(client, **options) as connection:
        await connection.send("connection_init", **({} if payload is None else {"payload": payload}))
        assert await connection.receive() == {"type": "connection_ack"}
        yield connection


class Events:
    """What a stream has told."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()

    async def next(self) -> tuple[str, Any]:
        """The next event's name, and its data; comments are passed over, and an end is ("", None)."""
        name, data = "", None
        async with asyncio.timeout(SECONDS):
            async for line in self._lines:
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    data = json.loads(line.removeprefix("data: ") or "null")
                elif not line and name:
                    return name, data
        return "", None


@asynccontextmanager
async def stream(
    client: Client, query: str, headers: dict[str, str] | None = None, **variables: object
) -> AsyncIterator[Events]:
    async with client.http.stream(
        "POST",
        "/graphql",
        json={"query": query, "variables": variables},
        headers={"Accept": "text/event-stream", **(headers or {})},
    ) as response:
        yield Events(response)
