"""What a connection may cost: how large a request's headers are, how slowly they come, and how slowly answers go.

The HTTP server itself sets none of these bounds. A body has its own (server/middleware.py).
"""

import asyncio
import resource
import socket
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# From its first byte on; a connection that is silent has as long as one that is kept for the next request.
HEADERS_SECONDS = 10
MOST_HEADERS = 100
# Of what is left to send at least so much is read within that time, or nobody is there who wants it.
READ_SECONDS = 30
READ_BYTES = 30_000
# An answer is whole in memory, and who asked holds no place any more: so it is not sent for long, however large it is.
ANSWER_SECONDS = 120
# Requests sent before the answers to earlier ones have come. What is asked beyond is left to another connection.
MOST_QUEUED = 16
# How long a client may go on sending what nobody reads: cut off at once, many never read why.
LINGER_SECONDS = 2
# Of one process. Each takes some kilobytes, and a file; files are needed for other things, too.
MOST_CONNECTIONS = 20_000
OTHER_FILES = 256
CODES = {HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "LIMIT_EXCEEDED", HTTPStatus.SERVICE_UNAVAILABLE: "OVERLOADED"}


@dataclass(slots=True)
class Bounds:
    header_bytes: int
    connections: int
    # Those between two requests, and since when, in the order in which they became so.
    idle: "dict[Protocol, float]" = field(default_factory=dict)
    # One timer for all of them: setting one for each, after each request, would be a tenth of the work of answering it.
    timer: asyncio.TimerHandle | None = None

    def rest(self, protocol: "Protocol") -> None:
        """The connection waits for its next request, for no longer than is set."""
        self.idle[protocol] = protocol.loop.time()
        if self.timer is None:
            self.timer = protocol.loop.call_later(protocol.timeout_keep_alive, self._end, protocol.loop)

    def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        self.timer = None
        for protocol, since in list(self.idle.items()):
            if (end := since + protocol.timeout_keep_alive) > loop.time():
                self.timer = loop.call_at(end, self._end, loop)
                return
            protocol.drop()


def most_connections() -> int:
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + OTHER_FILES
    if files < wanted or files == resource.RLIM_INFINITY:
        files = wanted if most == resource.RLIM_INFINITY else min(most, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    return max(1, min(files, wanted) - OTHER_FILES)


class Protocol(HttpToolsProtocol):
    # uvicorn's, or what looks like it (server/fast_protocol.py).
    cycle: Any

    def __init__(self, bounds: Bounds, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._bounds = bounds
        self._timer: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None
        # Runs where the answer has gone ahead of the body.
        self._lingering: asyncio.TimerHandle | None = None
        # Between the first byte of a request and the end of its headers; between that and its end.
        self._in_headers = self._in_body = False
        # Whether a request began, or ended, with the bytes that are being looked at.
        self._began = self._ended = False
        # Of headers that are not complete; and of all that has just been read.
        self._arrived = self._size = 0
        # After headers that are, without a byte of the body: how it is cut into chunks, and what trails behind it.
        self._beside = 0
        self._too_large = self._refused = False
        # Whether it is a WebSocket by now, and nothing here is its business.
        self._left = False
        # What is being answered: `cycle` is what was asked last, which may have to wait for that.
        self._answering: Any = None

    @property
    def in_headers(self) -> bool:
        """Whether a request has begun to arrive, and its headers are not complete."""
        return self._in_headers

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        if len(self.connections) > self._bounds.connections:
            if not self._bounds.idle:
                self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "There are too many connections.")
                return
            # Whoever wants something goes before who may want something some time.
            next(iter(self._bounds.idle)).drop()
        connected = transport.get_extra_info("socket")
        if connected is not None and connected.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT"):
            # The kernel gives up sending to who reads nothing at all, or has gone without a word.
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(READ_SECONDS * 1_000))
        self._bounds.rest(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._bounds.idle.pop(self, None)
        for timer in (self._timer, self._reading, self._lingering):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()

    def drop(self) -> None:
        self._bounds.idle.pop(self, None)
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._bounds.idle.pop(self, None)
        self._began = self._ended = False
        self._size = len(data)
        self._beside += self._size
        super().data_received(data)
        if not self._left:
            self._look(self._size)

    def _look(self, size: int) -> None:
        """What is to be done after so many bytes were read."""
        if self._refused:
            return
        if self._in_headers and not self._began:
            self._arrived += size
            if self._arrived > self._bounds.header_bytes:
                self._refuse_headers()
        elif self._in_body and self._beside > self._bounds.header_bytes:
            self._refuse_headers()
        elif self._ended and not self._in_headers and self.cycle.response_complete:
            self._keep()
        self._watch_headers()

    def handle_websocket_upgrade(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._refuse(HTTPStatus.BAD_REQUEST, "A WebSocket begins when what was asked before is answered.")
            return
        self._left = True
        for timer in (self._timer, self._reading, self._lingering):
            if timer is not None:
                timer.cancel()
        super().handle_websocket_upgrade()
        # It refers to us, and would keep both.
        del self.parser

    def _watch_headers(self) -> None:
        if self._refused:
            return
        # Line ends before a request are nothing yet, and are not to go on for ever.
        if self._in_headers or not (self._in_body or self._ended):
            if self._timer is None:
                self._timer = self.loop.call_later(HEADERS_SECONDS, self._give_up)
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def on_message_begin(self) -> None:
        self.begin_message()
        self._in_headers = self._began = True
        self._arrived = 0

    def begin_message(self) -> None:
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            return  # it trails behind the body, and may not change what was said before
        name = name.lower()
        self.headers.append((name, value))
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        if len(self.headers) > MOST_HEADERS:
            self._too_large = True
            raise ValueError

    def on_headers_complete(self) -> None:
        # What came with few bytes has no more itself.
        if self._size > self._bounds.header_bytes or not self._began:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self._bounds.header_bytes:
                self._too_large = True
                raise ValueError
        if len(self.pipeline) >= MOST_QUEUED:
            raise ValueError
        self.start_cycle()
        self._in_headers, self._in_body = False, True
        self._beside = 0

    def start_cycle(self) -> None:
        """Begin to answer a request whose headers are complete."""
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._beside = 0

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_body, self._ended = False, True

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._in_body:
            self._lingering = self.loop.call_later(LINGER_SECONDS, self.transport.close)
        else:
            self._bounds.rest(self)

    def _keep(self) -> None:
        """For the next request: the body has come to its end, too."""
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        self._bounds.rest(self)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reading(self.loop.time() + ANSWER_SECONDS)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def send_400_response(self, msg: str) -> None:
        if self._too_large:
            self._refuse_headers()
        else:
            self._refuse(HTTPStatus.BAD_REQUEST, msg)

    def _watch_reading(self, end: float) -> None:
        left = self.transport.get_write_buffer_size()
        seconds = min(READ_SECONDS, end - self.loop.time())
        self._reading = self.loop.call_later(seconds, self._require_read, left, end)

    def _require_read(self, left: int, end: float) -> None:
        if left - self.transport.get_write_buffer_size() < READ_BYTES or self.loop.time() >= end:
            self.transport.abort()
        else:
            self._watch_reading(end)

    def _refuse_headers(self) -> None:
        message = f"The headers have more than {self._bounds.header_bytes} bytes, or are more than {MOST_HEADERS}."
        self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, message)

    def _give_up(self) -> None:
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, "The headers did not arrive in time.")

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Say why, as a GraphQL client can read it, and read nothing more of this connection."""
        self._refused = True
        if self._timer is not None:
            self._timer.cancel()
        if self.cycle is not None and not self.cycle.response_complete:  # None before the first
            if not self._in_body or self.cycle.response_started or self.pipeline:
                # An earlier request is being answered: that is the last.
                self.cycle.keep_alive = False
                self.flow.pause_reading()
                return
            # It will never be whole, and whoever reads it is told so: the answer is ours.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        elif self._in_body:
            self.transport.close()  # it has its answer
            return
        code = CODES.get(status, "BAD_USER_INPUT")
        body = orjson.dumps({"errors": [{"message": message, "extensions": {"code": code}}]})
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Content-Length": len(body),
            "Connection": "close",
        }
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            headers["Retry-After"] = 1
        lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in headers.items())]
        if self.parser.get_method() == b"HEAD":
            body = b""
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.abort)
