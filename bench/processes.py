"""The service itself, as processes that end with the measurement."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired

from bench.client import Client
from bench.databases import Database

# Longer than the service takes for what is under way when it is told to stop.
PATIENCE = 40


@contextmanager
def serving(database: Database, *, tasks: int, rate_limit: int = 0, **settings: str) -> Iterator[Client]:
    """One server process, which works off so many tasks at a time besides; without a rate limit, unless one is said."""
    settings |= {"SERVE_TASKS": str(tasks), "RATE_LIMIT": str(rate_limit)}
    with _running(database, "serve", "--port", "0", **settings) as process:
        assert process.stdout is not None
        url = re.search(r"http://([\d.]+):(\d+)", process.stdout.readline())
        assert url is not None, (database.folder / "serve.log").read_text()
        with Client(url[1], int(url[2]), process.pid) as client:
            yield client


@contextmanager
def working(database: Database) -> Iterator[int]:
    """One `segmentql worker`; its process id."""
    with _running(database, "worker") as process:
        yield process.pid


def purge(database: Database) -> Popen[str]:
    """One `segmentql purge`, just started."""
    return _start(database, "purge")


def migrate(database: Database) -> None:
    with _start(database, "migrate") as process:
        assert process.wait() == 0


@contextmanager
def _running(database: Database, *words: str, **settings: str) -> Iterator[Popen[str]]:
    with _start(database, *words, **settings) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except TimeoutExpired:
                process.kill()


def _start(database: Database, *words: str, **settings: str) -> Popen[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SEGMENTQL_")}
    settings |= {
        "DATABASE_URL": database.url.render_as_string(hide_password=False),
        "REDIS_URL": database.redis_url,
        "DATA_DIR": str(database.folder / "service"),
    }
    environ |= {f"SEGMENTQL_{name}": value for name, value in settings.items()}
    program = Path(sys.executable).with_name("segmentql")
    with (database.folder / f"{words[0]}.log").open("a") as log:
        return Popen([str(program), *words], env=environ, stdout=PIPE, stderr=log, text=True)
