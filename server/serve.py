"""Serving: from settings to a listening process, and back to nothing left behind."""

import asyncio
import dataclasses
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Coroutine
from contextlib import ExitStack, suppress
from itertools import product
from multiprocessing import connection
from multiprocessing.context import SpawnProcess

from uvicorn.config import STARTUP_FAILURE

from server import answering, background, database, embedded, exposure
from server.exposure import is_loopback
from server.leaving import Everybody
from server.settings import Settings, StartError
from server.stop import Stop

log = logging.getLogger(__name__)
BACKLOG = 2_048
SPAWN = multiprocessing.get_context("spawn")
TICK_SECONDS = 0.2
PAUSE_SECONDS = 1  # before a server process is replaced: it may die of something that takes a moment to pass


def serve(settings: Settings) -> None:
    """Serve until told to stop; that then is success. Raises StartError or EmbeddedError when it cannot begin."""
    _refuse_unguarded(settings)
    stop = Stop()
    with ExitStack() as ending:
        if own := settings.embedded:
            with stop.by(sys.exit):
                servers = ending.enter_context(embedded.running(settings.data_dir))
            settings = dataclasses.replace(settings, database_url=servers.database_url, redis_url=servers.redis_url)
        if settings.serve_tasks:
            background.prepare(settings)
        listener = ending.enter_context(_listener(settings))
        asyncio.run(_unless_told(stop, _prepare(settings, own=own)))
        _listen(listener, settings)
        if own:
            embedded.announce(settings.data_dir, _url(listener))
        _greet(listener, settings)
        if settings.workers > 1:
            _supervise(settings, listener, stop)
        else:
            _answer(settings, listener, stop)


async def _prepare(settings: Settings, *, own: bool) -> None:
    await (database.prepare(settings) if own else database.check(settings))
    if settings.authentication == "required" and settings.jwt_issuer is None:
        await database.warn_without_tokens(settings)


async def _unless_told(stop: Stop, work: Coroutine[None, None, None]) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
    with stop.by(lambda: loop.call_soon_threadsafe(task.cancel)), suppress(asyncio.CancelledError):
        await task


def _answer(settings: Settings, listener: socket.socket, stop: Stop) -> None:
    try:
        answering.answer(settings, listener, stop)
    except SystemExit as error:  # uvicorn's, whose lines say why
        raise _failed() from error


def _supervise(settings: Settings, listener: socket.socket, stop: Stop) -> None:
    """Several server processes. One that dies is replaced, and all end with us."""
    everybody = Everybody()
    try:
        processes = [_start(settings, listener, everybody, number) for number in range(settings.workers)]
        first = tuple(processes)
        while True:
            connection.wait([each.sentinel for each in processes], TICK_SECONDS)
            if stop.told:
                return
            for dead in [each for each in processes if each.exitcode is not None]:
                if dead.exitcode == STARTUP_FAILURE and dead in first:
                    raise _failed()
                log.error("server process %s died (exit code %s) and is replaced", dead.pid, dead.exitcode)
                time.sleep(PAUSE_SECONDS)
                number = processes.index(dead)
                processes[number] = _start(settings, listener, everybody, number)
    finally:
        # Each has its own copy. Or, when they have left, callers would go on connecting, and nobody would answer.
        listener.close()
        everybody.leave()
        _end(stop, answering.limit(settings))


def _end(stop: Stop, seconds: float) -> None:
    """Have all server processes end, and pass on what we are told meanwhile: a second signal ends their draining."""
    told, deadline = 0, time.monotonic() + seconds
    while (children := multiprocessing.active_children()) and time.monotonic() < deadline:
        # Where it is a failure that ends us, nobody needs to be drained.
        signals = stop.signals or [signal.SIGINT]
        for each, received in product(children, signals[told:]):
            assert each.pid is not None
            with suppress(ProcessLookupError):
                os.kill(each.pid, received)
            if received == signal.SIGINT:
                each.terminate()  # one that is just starting ignores Ctrl-C
        told = len(signals)
        connection.wait([each.sentinel for each in children], TICK_SECONDS)
    for each in multiprocessing.active_children():
        each.kill()


def _start(settings: Settings, listener: socket.socket, everybody: Everybody, number: int) -> SpawnProcess:
    if settings.metrics_port is not None:
        settings = dataclasses.replace(settings, metrics_port=settings.metrics_port + number)
    process = SPAWN.Process(target=answering.answer_as_child, args=(settings, listener, everybody))
    # It inherits that Ctrl-C, which reaches all of us, is ignored until it can stop in an orderly way.
    ours = signal.signal(signal.SIGINT, signal.SIG_IGN)
    process.start()
    signal.signal(signal.SIGINT, ours)
    return process


def _failed() -> StartError:
    return StartError("The service could not start; the lines above say why.")


def _listener(settings: Settings) -> socket.socket:
    """Bound, so that nobody else has the port, and listening only when we are about to serve."""
    family, _ = min(_addresses(settings.host))  # IPv4, where `localhost` is both
    # As TCP by name: asyncio's own loop, where uvloop is not installed, sends without delay only then.
    listener = socket.socket(family, proto=socket.IPPROTO_TCP)
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
    """Where nobody is asked who they are only this machine may reach us, unless that was wanted in so many words."""
    jwt = {"ISSUER": settings.jwt_issuer, "AUDIENCE": settings.jwt_audience, "JWKS_URL": settings.jwt_jwks_url}
    if any(jwt.values()) and not all(jwt.values()):
        missing = " and ".join(f"SEGMENTQL_JWT_{name}" for name, value in jwt.items() if not value)
        raise StartError(f"JWTs cannot be checked without {missing}: set that, too, or no SEGMENTQL_JWT_… at all.")
    if settings.authentication == "required":
        return
    if settings.jwt_issuer:
        raise StartError(
            "SEGMENTQL_JWT_ISSUER is set, but nobody is asked for a token: set SEGMENTQL_AUTHENTICATION=required, too."
        )
    if settings.unauthenticated == "anywhere":
        return
    _addresses(settings.host)  # that there is no such name is another matter
    if is_loopback(settings.host):
        return
    raise StartError(
        f"Refusing to serve without authentication on {settings.host}, which others can reach: set "
        "SEGMENTQL_AUTHENTICATION=required and make tokens with `segmentql token create`, use --host 127.0.0.1, "
        "or set SEGMENTQL_UNAUTHENTICATED=anywhere where the network itself keeps strangers out."
    )


def _addresses(host: str) -> list[tuple[socket.AddressFamily, str]]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise StartError(f"There is no address {host!r} to listen on: choose another with --host.") from error
    return [(family, str(address[0])) for family, _, _, _, address in found]


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/graphql" if ":" in host else f"http://{host}:{port}/graphql"


def _greet(listener: socket.socket, settings: Settings) -> None:
    url, authorization = _url(listener), ""
    print(f"SegmentQL serves on {url}")  # noqa: T201  # for the person who started it
    if settings.authentication == "required":
        print("Callers must show a token: TOKEN=$(segmentql token create --name me --scope admin)")  # noqa: T201
        authorization = ' -H "Authorization: Bearer $TOKEN"'
    page = "Open that in a browser and press the run button of each tab, or try:"
    print(page if exposure.shows_graphiql(settings) else "Try:")  # noqa: T201
    query = '{"query": "{ user(id: 1000) { segments { slug } } }"}'
    print(f"  curl -s {url}{authorization} -H 'Content-Type: application/json' -d '{query}'", flush=True)  # noqa: T201
