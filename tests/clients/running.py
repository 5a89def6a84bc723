"""A server with databases of its own, for programs that ask it from outside (tests/contract/fuzz.py, too)."""

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
    log: Path
    environ: dict[str, str]

    def complaints(self) -> str:
        """The log, if there is in it what should not be, else nothing."""
        text = self.log.read_text()
        return text if "internal error" in text or "Traceback" in text else ""

    def new_token(self) -> str:
        command = [*COMMAND, "token", "create", "--name", "clients", "--scope", "write"]
        made = subprocess.run(command, env=self.environ, check=True, capture_output=True, text=True)
        return made.stdout.strip()


@contextmanager
def serving(folder: Path, **settings: str) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings |= {"PORT": str(port), "DATA_DIR": str(folder / "data")}
    # What the shell has set is for another server.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SEGMENTQL_")}
    environ |= {f"SEGMENTQL_{name}": value for name, value in settings.items()}
    url, log = f"http://127.0.0.1:{port}", folder / "log"
    with log.open("w") as written:
        process = subprocess.Popen([*COMMAND, "serve"], env=environ, stdout=written, stderr=written)
        try:
            wait(url, process, log)
            yield Server(url, log, environ)
        finally:
            process.terminate()
            try:
                process.wait(START_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/readyz").is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    sys.exit(f"The server did not start:\n{log.read_text()}")
