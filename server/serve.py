"""Serving: from settings to a listening process, and back to nothing left behind."""

import asyncio
import dataclasses
import ipaddress
import multiprocessing
import os
import signal
import socket
import sys
import threading
from contextlib import ExitStack

import uvicorn
from uvicorn.supervisors import Multiprocess

from server import database, embedded
from server.app import create_app
from server.settings import Settings, StartError, to_environ

# What is under way when the process is told to stop gets so long to finish.
GRACE_SECONDS = 15
BACKLOG = 2_048


def serve(settings: Settings) -> None:
    """Serve until told to stop. Raises StartError or EmbeddedError when that cannot begin."""
    _refuse_unguarded(settings)
    # Without a handler SIGTERM would end the process where it stands, and leave no time to stop the own servers.
    signal.signal(signal.SIGTERM, _leave)
    with ExitStack() as ending:
        if settings.embedded:
            servers = ending.enter_context(embedded.running(settings.data_dir))
            settings = dataclasses.replace(settings, database_url=servers.database_url, redis_url=servers.redis_url)
            listener = ending.enter_context(_listener(settings))
            asyncio.run(database.prepare(settings))
            embedded.announce(settings.data_dir, _url(listener))
        else:
            listener = ending.enter_context(_listener(settings))
            asyncio.run(database.check(settings))
        # From here on a caller who connects is answered, if only when the application has started.
        listener.listen(BACKLOG)
        _greet(listener)
        _run(settings, listener)


def end_with_parent() -> None:
    """In a server process: stop when the process that started it is gone, even if that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_and_leave, args=(parent,), daemon=True, name="parent").start()


def _run(settings: Settings, listener: socket.socket) -> None:
    common = {
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "timeout_graceful_shutdown": GRACE_SECONDS,
        "lifespan": "on",
        "ws": "none",
    }
    if settings.workers == 1:
        config = uvicorn.Config(create_app(settings), **common)  # type: ignore[arg-type]  # one dict of several types
        uvicorn.Server(config).run(sockets=[listener])
        return
    os.environ.update(to_environ(settings))
    config = uvicorn.Config("server.worker:app", factory=True, workers=settings.workers, **common)  # type: ignore[arg-type]  # as above
    Multiprocess(config, sockets=[listener]).run()


def _wait_and_leave(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _leave(_signal: int, _frame: object) -> None:
    sys.exit(0)


def _listener(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise StartError(
            f"Cannot listen on {settings.host} port {settings.port} ({error.strerror}): choose another with --port or --host."
        ) from error
    listener.set_inheritable(True)
    return listener


def _refuse_unguarded(settings: Settings) -> None:
    """Nobody is asked who they are, so only this machine may reach us, unless that was wanted in so many words."""
    if settings.unauthenticated == "anywhere" or _is_loopback(settings.host):
        return
    raise StartError(
        f"Refusing to serve without authentication on {settings.host}, which others can reach: "
        "use --host 127.0.0.1, or set SEGMENTQL_UNAUTHENTICATED=anywhere where the network itself keeps strangers out."
    )


def _is_loopback(host: str) -> bool:
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError as error:
        raise StartError(f"There is no address {host!r} to listen on: choose another with --host.") from error
    return all(ipaddress.ip_address(address).is_loopback for address in addresses)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/graphql" if ":" in host else f"http://{host}:{port}/graphql"


def _greet(listener: socket.socket) -> None:
    url = _url(listener)
    print(f"SegmentQL serves on {url}")  # noqa: T201  # for the person who started it
    print("Open that in a browser and press the run button of each tab, or try:")  # noqa: T201
    query = '{"query": "{ user(id: 1000) { segments { slug } } }"}'
    print(f"  curl -s {url} -H 'Content-Type: application/json' -d '{query}'", flush=True)  # noqa: T201
