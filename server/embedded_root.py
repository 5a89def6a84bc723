"""As whom an embedded server runs, for PostgreSQL refuses root, and that it ends no later than we do."""

import ctypes
import os
import pwd
import stat
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from subprocess import DEVNULL, PIPE, CompletedProcess, Popen, TimeoutExpired
from typing import IO


class EmbeddedError(Exception):
    """Why the embedded servers cannot run: one line for a person, with the remedy; what a server said may follow."""


class DiedError(EmbeddedError):
    """It ended before it was ready."""


class RootError(EmbeddedError):
    def __init__(self, obstacle: str) -> None:
        super().__init__(
            f"PostgreSQL refuses to run as root, and {obstacle}: run as an ordinary user, choose a --data-dir below "
            "directories that others may enter, or set SEGMENTQL_DATABASE_URL and SEGMENTQL_REDIS_URL."
        )


@dataclass(frozen=True)
class Server:
    name: str
    process: Popen[bytes]
    log: Path
    began: int  # where in the log this start begins

    def wait_until(self, ready: Callable[[], bool]) -> None:
        limit = 60  # seconds: recovery after a crash reads all that was written since the last checkpoint
        until = time.monotonic() + limit
        while not ready():
            if self.process.poll() is not None:
                raise DiedError(f"{self.name} did not start; {self.log} says why:\n{self.said()}")
            if time.monotonic() > until:
                raise EmbeddedError(f"{self.name} was not ready in {limit} s; {self.log} may say why:\n{self.said()}")
            time.sleep(0.01)

    def said(self) -> str:
        with self.log.open("rb") as log:
            log.seek(self.began)
            return "\n".join(log.read().decode(errors="replace").splitlines()[-10:])

    def stop(self, *steps: tuple[Signals, float]) -> None:
        for signal, patience in steps:
            self.process.send_signal(signal)
            with suppress(TimeoutExpired):
                self.process.wait(patience)
                return


@dataclass(frozen=True)
class Account:
    """Who runs the servers: ourselves, ourselves behind a prefix, or another user."""

    prefix: tuple[str, ...] = ()
    uid: int | None = None
    gid: int | None = None

    def serve(self, command: list[str], log: Path, ending: ExitStack, *steps: tuple[Signals, float]) -> Server:
        """Start a server. It ends with `ending` by these signals, each with its patience; without us, by the first."""
        log.touch(mode=0o600)
        self.take(log)
        with log.open("ab") as output:
            began = output.tell()  # the server's writing moves it
            process = self._start(command, log.parent, steps[0][0], DEVNULL, output)
        server = Server(Path(command[0]).name, process, log, began)
        ending.callback(server.stop, *steps)
        return server

    def run(self, command: list[str], cwd: Path, text: str = "") -> CompletedProcess[str]:
        """Run a short program to its end, with `text` as its input."""
        with self._start(command, cwd, Signals.SIGTERM, PIPE, PIPE) as process:
            try:
                said, complaints = process.communicate(text.encode())
            except BaseException:  # Ctrl-C, which does not reach its session
                process.kill()
                raise
        texts = (output.decode(errors="replace") for output in (said, complaints))
        return CompletedProcess(command, process.returncode, *texts)

    def take(self, path: Path) -> None:
        """Own a path and all below it. Safe to repeat after an interruption: the path itself comes last."""
        if self.uid is not None and self.gid is not None and path.stat().st_uid != self.uid:
            for each in (*path.rglob("*"), path):
                os.chown(each, self.uid, self.gid, follow_symlinks=False)

    def _start(
        self, command: list[str], cwd: Path, farewell: Signals, stdin: int, output: IO[bytes] | int
    ) -> Popen[bytes]:
        return Popen(  # noqa: S603 - starting programs is its job
            [*self.prefix, *command],
            cwd=cwd,
            env=_environment(),
            stdin=stdin,
            stdout=output,
            stderr=output,
            user=self.uid,
            group=self.gid,
            extra_groups=None if self.uid is None else [],  # root's groups are not for others
            start_new_session=True,  # Ctrl-C is for us, who then stop the servers in order
            preexec_fn=_tie(os.getpid(), farewell),  # noqa: PLW1509 - it takes no lock that another thread may hold
        )


def account(data_dir: Path, cluster: Path, postgres: Path) -> Account:
    """Who may run the servers on this data directory, and can reach it and the program."""
    if os.geteuid() != 0:
        return _ourselves()
    owner = (cluster if cluster.exists() else data_dir).stat()
    if owner.st_uid == 0 and _closed_to(NAMESPACE, data_dir, postgres) is None:
        return NAMESPACE
    # Who owns the data keeps it: `sudo` in a user's project must not lock the user out of it.
    owned = owner.st_uid != 0 and _named(owner.st_uid)
    other = Account(uid=owner.st_uid, gid=owner.st_gid) if owned else _nobody()
    if not _can(other, "true"):
        raise RootError(f"this root may not become user {other.uid}")
    if not _can(other, "test", "-x", str(data_dir)):
        data_dir.chmod(stat.S_IMODE(data_dir.stat().st_mode) | 0o011)  # to pass through, not to read
    if closed := _closed_to(other, data_dir, postgres):
        raise RootError(f"user {other.uid}, as whom it would run, cannot reach {closed}")
    return other


# The kernel gives the program another number and no rights; its files stay ours, and nothing has to be opened for it.
NAMESPACE = Account(prefix=("unshare", "--user", "--map-user=65534", "--map-group=65534", "--"))


def _ourselves() -> Account:
    if not _named(os.geteuid()):
        raise EmbeddedError(
            f"PostgreSQL runs only as a user with a name, and {os.geteuid()} has none in /etc/passwd: "
            "run as a user that has, or set SEGMENTQL_DATABASE_URL and SEGMENTQL_REDIS_URL."
        )
    return Account()


def _named(uid: int) -> bool:
    with suppress(KeyError):
        return bool(pwd.getpwuid(uid).pw_name)
    return False


def _nobody() -> Account:
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise RootError("there is no user `nobody` to run it as") from None
    return Account(uid=nobody.pw_uid, gid=nobody.pw_gid)


def _closed_to(who: Account, data_dir: Path, postgres: Path) -> Path | None:
    if not _can(who, str(postgres), "--version"):
        return postgres
    return None if _can(who, "test", "-x", str(data_dir)) else data_dir


def _can(who: Account, *command: str) -> bool:
    try:
        return who.run(list(command), cwd=Path("/")).returncode == 0
    except OSError:  # no such program, or no leave to run it
        return False


def _environment() -> dict[str, str]:
    # PGPORT, PGOPTIONS and their like are meant for somebody else's server. A locale would translate the messages we
    # look for, and without any PostgreSQL does not start on macOS.
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}


def _tie(parent: int, farewell: Signals) -> Callable[[], None] | None:
    """What has the kernel send `farewell` when the calling thread ends, however it ends; nothing where it cannot."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # before the fork: loading takes locks

    # Popen calls it after the change of user, which would undo it.
    def tie() -> None:
        libc.prctl(1, farewell)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it died before we asked to be told
            os._exit(1)

    return tie
