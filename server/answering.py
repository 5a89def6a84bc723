"""A process that answers requests: the only one, or one of several on the same socket."""

import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from types import FrameType

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from server import logs, metrics
from server.app import create_app
from server.settings import Settings, StartError
from server.stop import Stop

log = logging.getLogger(__name__)

# What is under way when the process is told to stop gets so long to finish.
GRACE_SECONDS = 15
# By then a process that was told to stop has stopped, or hangs.
LIMIT_SECONDS = 2 * GRACE_SECONDS
# Longer than the minute after which load balancers drop an idle connection: were we the first to close it, they could
# be sending a request into it at that moment.
KEEP_ALIVE_SECONDS = 75


class Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, stop: Stop | None) -> None:
        super().__init__(config)
        self._stop = stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # Before uvicorn received the signals.
        self.should_exit |= self._stop is not None and self._stop.told

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn takes a second Ctrl-C as leave to drop what is under way, and raises the signal again at the end.
        self.should_exit = True


def answer(settings: Settings, listener: socket.socket, stop: Stop | None = None) -> None:
    """Answer requests until told to stop. Exits with uvicorn's STARTUP_FAILURE when that cannot begin."""
    metrics.expose(settings)
    config = uvicorn.Config(
        create_app(settings),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        lifespan="on",
        ws="none",
    )
    Server(config, stop).run(sockets=[listener])


def answer_as_child(settings: Settings, listener: socket.socket) -> None:
    """The same in a process of its own, which ends with the one that started it, even if that was killed."""
    logs.configure(settings.log_level)
    threading.Thread(target=_end_with_parent, daemon=True, name="parent").start()
    try:
        answer(settings, listener)
    except StartError as error:
        log.error("%s", error)  # noqa: TRY400  # it is one line for a person
        sys.exit(STARTUP_FAILURE)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LIMIT_SECONDS)
    os._exit(1)
