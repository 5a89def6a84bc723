"""Many clients who ask at once, and cost us little: each has connected before, and asks once."""

import asyncio
import copy
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from faults.processes import PATIENCE_SECONDS, Process
from faults.stack import Stack


class _Connected(httpx.AsyncBaseTransport):
    """One connection, for one request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        content = await request.aread()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS + 1):
                self._writer.write(
                    b"POST /graphql HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                    b"Content-Length: %d\r\n\r\n%b" % (len(content), content)
                )
                head = await self._reader.readuntil(b"\r\n\r\n")
                (length,) = re.findall(rb"(?i)\r\ncontent-length: *(\d+)\r\n", head)
                answer = await self._reader.readexactly(int(length))
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as lost:
            raise httpx.ReadError(str(lost)) from lost
        return httpx.Response(int(head.split(b" ", 2)[1]), content=answer)


@asynccontextmanager
async def connected(stack: Stack, number: int) -> AsyncIterator[list[Process]]:
    """So many clients, each connected to one of the servers."""
    clients, writers = [], []
    try:
        for each in range(number):
            client = copy.copy(stack.servers[each % len(stack.servers)])
            address = client.http.base_url
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writers.append(writer)
            client.http = httpx.AsyncClient(base_url=address, transport=_Connected(reader, writer))
            clients.append(client)
        yield clients
    finally:
        for writer in writers:
            writer.transport.abort()
