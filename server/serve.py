"""Serving: from settings to a listening process, and back to nothing left behind."""

import asyncio
import dataclasses
import ipaddress
import logging
import multiprocessing
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from multiprocessing import connection
from multiprocessing.context import SpawnProcess

from uvicorn.config import STARTUP_FAILURE

from server import database, embedded, worker
from server.settings import Settings, StartError

log = logging.getLogger(__name__)
BACKLOG = 2_048
SPAWN = multiprocessing.get_context("spawn")
PAUSE_SECONDS = 1  # before a server process is replaced: it may die of something that takes a moment to pass


def serve(settings: Settings) -> None:
    """Serve until told to stop; that then is success. Raises StartError or EmbeddedError when it cannot begin."""
    _refuse_unguarded(settings)
    # Without a handler SIGTERM would end the process where it stands, and leave no time to stop the own servers.
    _when_told_to_stop(_leave)
    with ExitStack() as ending:
        if settings.embedded:
            servers = ending.enter_context(embedded.running(settings.data_dir))
            settings = dataclasses.replace(settings, database_url=servers.database_url, redis_url=servers.redis_url)
            listener = ending.enter_context(_listener(settings))
            asyncio.run(_unless_told_to_stop(database.prepare(settings)))
            _listen(listener, settings)
            embedded.announce(settings.data_dir, _url(listener))
        else:
            listener = ending.enter_context(_listener(settings))
            asyncio.run(_unless_told_to_stop(database.check(settings)))
            _listen(listener, settings)
        _greet(listener)
        _run(settings, listener)


def _run(settings: Settings, listener: socket.socket) -> None:
    if settings.workers > 1:
        _supervise(settings, listener)
        return
    try:
        worker.answer(settings, listener)
    except SystemExit as error:
        if error.code == STARTUP_FAILURE:
            raise _failed() from error
        raise


def _supervise(settings: Settings, listener: socket.socket) -> None:
    """Several server processes. One that dies is replaced, and all end with us."""
    try:
        processes = [_start(settings, listener) for _ in range(settings.workers)]
        first = tuple(processes)
        while True:
            connection.wait([each.sentinel for each in processes])
            for dead in [each for each in processes if each.exitcode is not None]:
                if dead.exitcode == STARTUP_FAILURE and dead in first:
                    raise _failed()
                log.error("server process %s died (exit code %s) and is replaced", dead.pid, dead.exitcode)
                time.sleep(PAUSE_SECONDS)
                processes[processes.index(dead)] = _start(settings, listener)
    finally:
        # Or callers would go on connecting, and nobody would answer.
        listener.close()
        children = multiprocessing.active_children()
        for each in children:
            each.terminate()
        for each in children:
            each.join(worker.LIMIT_SECONDS)
            each.kill()


def _start(settings: Settings, listener: socket.socket) -> SpawnProcess:
    process = SPAWN.Process(target=worker.answer_as_child, args=(settings, listener))
    # It inherits that Ctrl-C, which reaches all of us, is ignored until it can stop in an orderly way.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process.start()
    signal.signal(signal.SIGINT, _leave)
    return process


def _failed() -> StartError:
    return StartError("The service could not start; the lines above say why.")


async def _unless_told_to_stop(work: Coroutine[None, None, None]) -> None:
    loop, task, told = asyncio.get_running_loop(), asyncio.ensure_future(work), asyncio.Event()

    # Raising in the midst of it, as `_leave` does, would be taken for a failure of whatever runs at that moment.
    def cancel(_signal: int, _frame: object) -> None:
        told.set()
        loop.call_soon_threadsafe(task.cancel)

    _when_told_to_stop(cancel)
    try:
        await task
    except asyncio.CancelledError:
        log.debug("told to stop before the database was ready")
    finally:
        _when_told_to_stop(signal.SIG_IGN if told.is_set() else _leave)
    # Not only when it was cancelled: closing a connection can swallow that.
    if told.is_set():
        sys.exit(0)


def _leave(_signal: int, _frame: object) -> None:
    _when_told_to_stop(signal.SIG_IGN)  # the own servers are stopped now, which takes a moment
    sys.exit(0)


def _when_told_to_stop(do: Callable[[int, object], None] | signal.Handlers) -> None:
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, do)


def _listener(settings: Settings) -> socket.socket:
    """Bound, so that nobody else has the port, and listening only when we are about to serve."""
    family, _ = min(_addresses(settings.host))  # IPv4, where `localhost` is both
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise _cannot_listen(settings, error) from error
    return listener


def _listen(listener: socket.socket, settings: Settings) -> None:
    """From here on a caller who connects is answered, if only when the application has started."""
    try:
        listener.listen(BACKLOG)
    except OSError as error:  # until somebody listens, several may be bound to one port
        raise _cannot_listen(settings, error) from error


def _cannot_listen(settings: Settings, error: OSError) -> StartError:
    return StartError(
        f"Cannot listen on {settings.host} port {settings.port} ({error.strerror}): "
        "choose another with --port or --host."
    )


def _refuse_unguarded(settings: Settings) -> None:
    """Nobody is asked who they are, so only this machine may reach us, unless that was wanted in so many words."""
    if settings.unauthenticated == "anywhere" or _is_loopback(settings.host):
        return
    raise StartError(
        f"Refusing to serve without authentication on {settings.host}, which others can reach: "
        "use --host 127.0.0.1, or set SEGMENTQL_UNAUTHENTICATED=anywhere where the network itself keeps strangers out."
    )


def _is_loopback(host: str) -> bool:
    return all(ipaddress.ip_address(address).is_loopback for _, address in _addresses(host))


def _addresses(host: str) -> list[tuple[socket.AddressFamily, str]]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise StartError(f"There is no address {host!r} to listen on: choose another with --host.") from error
    return [(family, str(address[0])) for family, _, _, _, address in found]


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/graphql" if ":" in host else f"http://{host}:{port}/graphql"


def _greet(listener: socket.socket) -> None:
    url = _url(listener)
    print(f"SegmentQL serves on {url}")  # noqa: T201  # for the person who started it
    print("Open that in a browser and press the run button of each tab, or try:")  # noqa: T201
    query = '{"query": "{ user(id: 1000) { segments { slug } } }"}'
    print(f"  curl -s {url} -H 'Content-Type: application/json' -d '{query}'", flush=True)  # noqa: T201
