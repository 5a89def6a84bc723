"""A server for the clients' programs: two processes, databases of its own, and nobody served without a token."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

START_SECONDS = 60
COMMAND = [sys.executable, "-m", "server"]


@dataclass(frozen=True)
class Server:
    url: str
    token: str
    log: Path

    def complaints(self) -> str:
        """The log, if there is in it what should not be, else nothing."""
        text = self.log.read_text()
        return text if "internal error" in text or "Traceback" in text else ""


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "SEGMENTQL_PORT": str(port),
        "SEGMENTQL_WORKERS": "2",
        "SEGMENTQL_DATA_DIR": str(folder / "data"),
        "SEGMENTQL_AUTHENTICATION": "required",
    }
    # What the shell has set is for another server.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SEGMENTQL_")} | settings
    url, log = f"http://127.0.0.1:{port}", folder / "log"
    with log.open("w") as written:
        server = subprocess.Popen([*COMMAND, "serve"], env=environ, stdout=written, stderr=written)
        try:
            wait(url, server, log)
            yield Server(url, new_token(environ), log)
        finally:
            server.terminate()
            server.wait(START_SECONDS)


def new_token(environ: dict[str, str]) -> str:
    command = [*COMMAND, "token", "create", "--name", "clients", "--scope", "write"]
    return subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout.strip()


def wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(f"{url}/readyz").is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    sys.exit(f"The server did not start:\n{log.read_text()}")
