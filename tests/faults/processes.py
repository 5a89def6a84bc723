"""The processes of the service: each has a way of its own to PostgreSQL and to Valkey, which can be cut."""

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import httpx
from breaking import Valkey
from clusters import Cluster
from relays import Relay

ROOT = Path(__file__).parents[2]
START_SECONDS = 120
# What an operation may take (SEGMENTQL_EXECUTION_TIMEOUT), and what the promise adds to it.
EXECUTION_SECONDS = 15
PATIENCE_SECONDS = EXECUTION_SECONDS + 2
# A server, or a worker that answers nobody.
SERVE, WORK = ("serve", "--port", "0"), ("worker",)
PROGRAM = (sys.executable, "-m", "server")


class Process:
    """`segmentql serve` or `segmentql worker`, which may be killed, frozen and started again."""

    def __init__(
        self,
        number: int,
        folder: Path,
        command: Sequence[str],
        environ: Mapping[str, str],
        *,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self.number, self.folder = number, folder
        self._command, self.environ, self.program = command, dict(environ), program
        self.process: asyncio.subprocess.Process | None = None
        self.http = httpx.AsyncClient()
        # When it was frozen, or left without what it needs, on purpose and by no fault of its own.
        self._excused: list[tuple[float, float]] = []

    @property
    def log(self) -> Path:
        return self.folder / f"process{self.number}.log"

    async def start(self) -> None:
        environ = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"} | self.environ
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.program,
                *self._command,
                cwd=self.folder,
                env=environ,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        if "serve" not in self._command:
            return
        assert self.process.stdout is not None
        async with asyncio.timeout(START_SECONDS):
            line = (await self.process.stdout.readline()).decode()
        url = re.search(r"http://[^/\s]+", line)
        assert url is not None, f"{line!r}: see {self.folder}"
        await self.http.aclose()
        limits = httpx.Limits(max_connections=400, max_keepalive_connections=50)
        self.http = httpx.AsyncClient(base_url=url[0], timeout=PATIENCE_SECONDS + 1, limits=limits, trust_env=False)

    def send(self, how: signal.Signals) -> None:
        assert self.process is not None
        with suppress(ProcessLookupError):
            self.process.send_signal(how)

    async def ended(self) -> int:
        """Wait until it is gone."""
        assert self.process is not None
        async with asyncio.timeout(START_SECONDS):
            return await self.process.wait()

    async def kill(self) -> None:
        self.send(signal.SIGKILL)
        await self.ended()

    async def frozen(self, seconds: float) -> None:
        """Stop it, and let it go on after so many seconds."""
        began = time.time()
        self.send(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.send(signal.SIGCONT)
            self.excuse(began)

    def excuse(self, began: float) -> None:
        """From then until now nobody can blame it for its silence."""
        self._excused.append((began, time.time()))

    def is_excused(self, began: float, ended: float) -> bool:
        return any(began <= until and ended >= since for since, until in self._excused)

    async def end(self) -> None:
        await self.http.aclose()
        if self.process is not None and self.process.returncode is None:
            self.send(signal.SIGCONT)
            self.send(signal.SIGTERM)
            try:
                async with asyncio.timeout(5):
                    await self.process.wait()
            except TimeoutError:
                await self.kill()


class Place:
    """A process, and the two relays that it reaches its servers through."""

    def __init__(self, number: int, folder: Path, postgres: Cluster, valkey: Valkey) -> None:
        self.folder = folder / str(number)
        self.folder.mkdir()
        self.postgres = Relay(self.folder / postgres.socket.name, postgres.socket)
        self.valkey = Relay(self.folder / "valkey.sock", valkey.socket)
        self.urls = {
            "SEGMENTQL_DATABASE_URL": postgres.url_by(self.folder),
            "SEGMENTQL_REDIS_URL": f"unix://{self.valkey.socket}",
        }

    async def enter(self, stack: AsyncExitStack) -> None:
        await stack.enter_async_context(self.postgres.running())
        await stack.enter_async_context(self.valkey.running())
