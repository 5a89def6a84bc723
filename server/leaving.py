"""How a process leaves: not ready, then finishing, then gone, and nothing that it accepted is lost."""

import asyncio
import ctypes
import logging
import multiprocessing
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import uvicorn

from server import metrics
from server.stop import Stop

log = logging.getLogger(__name__)
# A service manager tells every process of ours, and so does the one that started them: that is one signal, not two.
ECHO_SECONDS = 1
# So long it takes at the most until a process that shares its socket knows that the others leave, too.
TOGETHER_SECONDS = 0.5
# How long requests that are on their way have to arrive, once nobody new is let in.
LAST_SECONDS = 0.3
# How long one that has begun to arrive has to do so.
ARRIVING_SECONDS = 2
PAUSE_SECONDS = 0.01
# Reads a TCP header's flags, and drops what begins a connection (SYN without ACK); everything else passes.
SO_ATTACH_FILTER = 26
DROP_NEW = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),
        (0x54, 0, 0, 0x12),
        (0x15, 0, 1, 0x02),
        (0x06, 0, 0, 0),
        (0x06, 0, 0, 0xFFFF_FFFF),
    )
)


@dataclass(slots=True)
class Leaving:
    """Shared by the server, which is told to stop, and by what answers: not ready then, and keeping no connection."""

    begun: bool = False
    # What ends those connections that would go on for ever.
    endings: list[Callable[[], None]] = field(default_factory=list)


class Everybody:
    """Whether all processes that share a socket leave; what one of them is told, all know.

    Without a lock, which a process that is killed could have taken with it.
    """

    def __init__(self) -> None:
        self._leaves = multiprocessing.get_context("spawn").RawValue("b", 0)

    @property
    def leaves(self) -> bool:
        return bool(self._leaves.value)

    def leave(self) -> None:
        self._leaves.value = 1


class Server(uvicorn.Server):
    """On SIGTERM says for some seconds that it is not ready, and serves on; on a second one, or Ctrl-C, it does not.

    Then nobody new is let in, and what was accepted is finished. One of several processes on the same socket leaves
    those who are new to the others, unless `everybody` says that these leave, too.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        stop: Stop | None,
        leaving: Leaving,
        drain_seconds: float,
        everybody: Everybody | None = None,
    ) -> None:
        super().__init__(config)
        self._everybody = everybody
        self._stop = stop
        self._leaving = leaving
        self._drain_seconds = drain_seconds
        self._told_at = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # Before uvicorn received the signals.
        self.should_exit |= self._stop is not None and self._stop.told

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn takes a second Ctrl-C as leave to drop what is under way, and raises the signal again at the end.
        if not self._leaving.begun:
            self._leaving.begun, self._told_at = True, time.monotonic()
            self.should_exit = sig == signal.SIGINT or not self._drain_seconds or not self.started
        elif sig == signal.SIGINT or time.monotonic() - self._told_at > ECHO_SECONDS:
            self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        metrics.draining.set(self._leaving.begun)
        if self._leaving.begun and time.monotonic() - self._told_at >= self._drain_seconds:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._leaving.begun = True
        if await self._everybody_leaves():
            for each in sockets or ():
                _let_nobody_in(each)
        else:
            # Those who wait to be let in are the others', and so is the socket.
            for server in self.servers:
                server.close()
        for end in self._leaving.endings:
            end()
        try:
            await self._finish_arriving()
        finally:
            await super().shutdown(sockets)

    async def _everybody_leaves(self) -> bool:
        if self._everybody is None:
            return True
        for _ in range(int(TOGETHER_SECONDS / PAUSE_SECONDS)):
            if self._everybody.leaves:
                break
            await asyncio.sleep(PAUSE_SECONDS)
        return self._everybody.leaves

    async def _finish_arriving(self) -> None:
        """Answer what was sent before anybody could know that we leave: uvicorn closes a connection that is idle for
        it, though there may be a request in it that was not read yet.
        """
        begun = time.monotonic()
        while (waited := time.monotonic() - begun) < ARRIVING_SECONDS:
            await asyncio.sleep(PAUSE_SECONDS)
            if waited >= LAST_SECONDS and not any(map(_is_arriving, self.server_state.connections)):
                break


def _let_nobody_in(listener: socket.socket) -> None:
    """Whoever begins to connect from here on gets no answer, and tries again after a second: then there is a successor,
    or a refusal. Who has begun before is let in; closing the socket would throw them out, with what they have sent.
    """
    if sys.platform != "linux" or listener.family == socket.AF_UNIX:
        return
    program = ctypes.create_string_buffer(DROP_NEW)
    with suppress(OSError):  # a sandbox may not know of it: then there is a gap of microseconds
        filter_ = struct.pack("HP", len(DROP_NEW) // 8, ctypes.addressof(program))
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filter_)


def _is_arriving(connection: Any) -> bool:
    """Whether there is a part of a request that uvicorn has not made one of."""
    if getattr(connection, "in_headers", False):
        return True
    cycle = getattr(connection, "cycle", None)
    return (cycle is None or cycle.response_complete) and _unread([connection.transport])


def _unread(transports: Iterable[asyncio.Transport]) -> bool:
    poll = select.poll()
    for transport in transports:
        connected = transport.get_extra_info("socket")
        if connected is not None and connected.fileno() >= 0:
            poll.register(connected.fileno(), select.POLLIN)
    # What the other side has closed can be read, too, but says nothing any more.
    return any(events & select.POLLIN and not events & select.POLLHUP for _, events in poll.poll(0))
