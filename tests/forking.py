"""Processes of `segmentql` that begin where importing has ended: each is a second of work less.

One process for each test worker imports everything, and forks whenever a test wants `segmentql …`. What runs is the
command, in a process, a folder and an environment of its own, as if it had been typed.
"""

import atexit
import gc
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any, Self

ROOT = Path(__file__).parents[1]


class Command:
    """What tests use of subprocess.Popen, for `segmentql` with these arguments."""

    def __init__(
        self, arguments: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str], stdout: IO[Any], stderr: IO[Any]
    ) -> None:
        self.returncode: int | None = None
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(str(_forker()))
        wanted = json.dumps([list(map(str, arguments)), str(cwd), dict(env)]).encode()
        socket.send_fds(self._connection, [len(wanted).to_bytes(4, "big")], [stdout.fileno(), stderr.fileno()])
        self._connection.sendall(wanted)
        self.pid = int.from_bytes(_exactly(self._connection, 4), "big")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        self._connection.close()

    def poll(self) -> int | None:
        return self._ended(0.0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._ended(timeout)
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired("segmentql", timeout)
        return code

    def send_signal(self, how: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, how)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                said = self._connection.recv(4)
            except (BlockingIOError, TimeoutError):
                return None
            self._connection.settimeout(None)
            said += _exactly(self._connection, 4 - len(said))
            self.returncode = int.from_bytes(said, "big", signed=True)
        return self.returncode


def run(
    arguments: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str], timeout: float = 100
) -> subprocess.CompletedProcess[str]:
    """Run to its end."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        with Command(arguments, cwd=cwd, env=env, stdout=stdout, stderr=stderr) as command:
            try:
                code = command.wait(timeout)
            finally:
                command.kill()
        texts = [(file.seek(0), file.read())[1] for file in (stdout, stderr)]
    return subprocess.CompletedProcess(list(map(str, arguments)), code, *texts)


@cache
def _forker() -> Path:
    """Where to ask for a process."""
    folder = tempfile.TemporaryDirectory(prefix="forking-")
    path = Path(folder.name) / "socket"
    # It ends when nobody holds the other end of its standard input any more.
    command = [sys.executable, __file__, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"

    def end(stdin: IO[bytes] = process.stdin, stdout: IO[bytes] = process.stdout) -> None:
        stdin.close()
        stdout.close()
        process.wait(10)
        folder.cleanup()

    atexit.register(end)
    return path


def _exactly(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        more = connection.recv(size - len(found))
        assert more, "the process that forks has ended"
        found += more
    return found


def _serve(path: str) -> None:
    """Fork for each who asks, and tell how each process ended. Returns in the forked ones, with their arguments set."""
    children: dict[int, tuple[int, socket.socket]] = {}
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
    os.write(1, b"ready\n")
    while True:
        for ready, _ in selector.select():
            if ready.fileobj is listener:
                connection, _ = listener.accept()
                head, fds, _, _ = socket.recv_fds(connection, 4, 2)
                wanted = json.loads(_exactly(connection, int.from_bytes(head, "big")))
                pid = os.fork()
                if pid == 0:
                    selector.close()
                    for each in [listener, connection, *(other for _, other in children.values())]:
                        each.close()
                    for pidfd in children:
                        os.close(pidfd)
                    arguments, cwd, environ = wanted
                    _become(arguments, cwd, environ, fds)
                    return
                for fd in fds:
                    os.close(fd)
                pidfd = os.pidfd_open(pid)
                children[pidfd] = (pid, connection)
                selector.register(pidfd, selectors.EVENT_READ)
                connection.sendall(pid.to_bytes(4, "big"))
            elif ready.fd in children:
                pid, connection = children.pop(ready.fd)
                selector.unregister(ready.fd)
                os.close(ready.fd)
                _, status = os.waitpid(pid, 0)
                with connection:
                    try:
                        connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))
                    except OSError:
                        continue  # whoever asked has gone
            else:
                os._exit(0)


def _become(arguments: list[str], cwd: str, environ: dict[str, str], fds: list[int]) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    for new, fd in zip([nothing, *fds], range(3), strict=True):
        os.dup2(new, fd)
        os.close(new)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = ["segmentql", *arguments]


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    from server import cli

    gc.freeze()
    _serve(sys.argv[1])
    code: object = 0
    try:
        cli.main()
    except SystemExit as ended:
        code = ended.code
    # All that ends in an orderly way does so here; taking apart what was imported would take longer than most commands.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)
