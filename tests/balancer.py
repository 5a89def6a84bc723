"""A load balancer of the ordinary kind: round robin, asks who is ready, keeps connections, and repeats nothing."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field

ASK_SECONDS = 0.1
READY = b"GET /readyz HTTP/1.1\r\nHost: balancer\r\nConnection: close\r\n\r\n"
BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"

Message = tuple[bytes, bytes]


@dataclass
class Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, request: bytes) -> Message:
        """The answer's head and body. Raises OSError or EOFError when there is none."""
        self.writer.write(request)
        return await read(self.reader)

    def close(self) -> None:
        self.writer.close()


async def connect(port: int) -> Connection:
    return Connection(*await asyncio.open_connection("127.0.0.1", port))


async def read(reader: asyncio.StreamReader) -> Message:
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    (length,) = [int(line[16:]) for line in lines if line.startswith(b"content-length: ")] or [0]
    return head, await reader.readexactly(length)


def ends(head: bytes) -> bool:
    return b"\r\nconnection: close\r\n" in head.lower()


@dataclass
class Backend:
    port: int
    ready: bool = False
    idle: list[Connection] = field(default_factory=list)

    async def connection(self) -> Connection:
        while self.idle:
            found = self.idle.pop()
            if not found.reader.at_eof():
                return found
            found.close()
        return await connect(self.port)

    async def watch(self) -> None:
        while True:
            try:
                asked = await connect(self.port)
                with closing(asked):
                    head, _ = await asked.ask(READY)
                self.ready = b" 200 " in head
            except (OSError, EOFError):
                self.ready = False
            await asyncio.sleep(ASK_SECONDS)


class Balancer:
    def __init__(self) -> None:
        self.backends: list[Backend] = []
        self.port = 0
        self._at_work: list[asyncio.Task[None]] = []

    async def add(self, port: int) -> None:
        """A further backend; returns once it gets requests."""
        backend = Backend(port)
        self._at_work.append(asyncio.create_task(backend.watch()))
        self.backends.append(backend)
        async with asyncio.timeout(20):
            while not backend.ready:
                await asyncio.sleep(ASK_SECONDS / 10)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Balancer"]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._at_work:
                task.cancel()
            await asyncio.gather(*self._at_work, return_exceptions=True)
            for connection in [each for backend in self.backends for each in backend.idle]:
                connection.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._at_work.append(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head, body = await read(reader)
                writer.write(await self._forward(head + body))
        except (OSError, EOFError):
            pass  # the client has left
        finally:
            writer.close()

    async def _forward(self, request: bytes) -> bytes:
        for backend in self._turn():
            try:
                connection = await backend.connection()
            except OSError:
                continue  # nothing was sent: the next one may have it
            try:
                head, body = await connection.ask(request)
            except BaseException as error:
                connection.close()
                if not isinstance(error, OSError | EOFError):
                    raise
                return BAD_GATEWAY  # it may have happened: a balancer that does not know may not ask again
            if ends(head):
                connection.close()
            else:
                backend.idle.append(connection)
            return head + body
        return BAD_GATEWAY

    def _turn(self) -> Sequence[Backend]:
        self.backends.append(self.backends.pop(0))
        return [backend for backend in self.backends if backend.ready]
