"""A server process of a test's own, as callers see it, and what it holds."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
from conftest import ROOT, Client


@dataclass(frozen=True)
class Process(Client):
    pid: int

    @property
    def megabytes(self) -> float:
        """What it holds in memory now."""
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text())
        assert found is not None
        return int(found[1]) / 1024


@asynccontextmanager
async def server_process(
    database_url: str, redis_url: str, log: IO[bytes] | None = None, **settings: str
) -> AsyncIterator[Process]:
    """One without limits; it logs where this process does, if nothing else is said."""
    settings |= {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "RATE_LIMIT": "0"}
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server", "serve", "--port", "0"),
        cwd=ROOT,
        env=os.environ | {f"SEGMENTQL_{name}": value for name, value in settings.items()},
        stdout=asyncio.subprocess.PIPE,
        stderr=log,
    )
    try:
        assert server.stdout is not None
        url = re.search(r"http://[^/]+", (await server.stdout.readline()).decode())
        assert url is not None
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=url[0], timeout=30, limits=limits) as http:
            yield Process(http, server.pid)
    finally:
        if server.returncode is None:
            server.terminate()
        await server.wait()
