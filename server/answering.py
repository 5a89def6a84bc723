"""A process that answers requests: the only one, or one of several on the same socket."""

import gc
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from server import fast_protocol, logs, metrics, websocket_protocol
from server.app import create_app
from server.leaving import Everybody, Leaving, Server
from server.settings import Settings, StartError
from server.stop import Stop
from server.websocket_protocol import WebSocketProtocol

log = logging.getLogger(__name__)

# What is under way when the process is told to stop gets so long to finish.
GRACE_SECONDS = 15
# Longer than the minute after which load balancers drop an idle connection: were we the first to close it, they could
# be sending a request into it at that moment.
KEEP_ALIVE_SECONDS = 75


def answer(
    settings: Settings, listener: socket.socket, stop: Stop | None = None, everybody: Everybody | None = None
) -> None:
    """Answer requests until told to stop. Exits with uvicorn's STARTUP_FAILURE when that cannot begin."""
    metrics.expose(settings)
    leaving = Leaving()
    config = uvicorn.Config(
        create_app(settings, leaving),
        http=fast_protocol.bounded(settings.max_header_bytes),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        lifespan="on",
        ws=WebSocketProtocol,
        **websocket_protocol.SETTINGS,
    )
    # What is there now stays: looking through all of it for garbage again and again would stop everybody for 0.1 s.
    gc.collect()
    gc.freeze()
    # What is kept for long is hardly ever garbage. The look at all of it stops everybody: it comes once in millions of
    # requests; what is garbage is nearly always found by the looks at what is new.
    gc.set_threshold(10_000, 20, 500)
    Server(config, stop, leaving, settings.drain_seconds, everybody).run(sockets=[listener])


def answer_as_child(settings: Settings, listener: socket.socket, everybody: Everybody) -> None:
    """The same in a process of its own, which ends with the one that started it, even if that was killed."""
    logs.configure(settings.log_level, settings.log_format)
    threading.Thread(target=_end_with_parent, args=(limit(settings), everybody), daemon=True, name="parent").start()
    try:
        answer(settings, listener, everybody=everybody)
    except StartError as error:
        log.error("%s", error)  # noqa: TRY400  # it is one line for a person
        sys.exit(STARTUP_FAILURE)


def limit(settings: Settings) -> float:
    """Seconds after which a process that was told to stop has stopped, or hangs."""
    return settings.drain_seconds + 2 * GRACE_SECONDS


def _end_with_parent(seconds: float, everybody: Everybody) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    everybody.leave()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(seconds)
    os._exit(1)
