"""Where requests that can go the short way leave uvicorn's: without ASGI's messages, and written at once."""

import asyncio
import logging
from contextvars import copy_context
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from resolvers import facts
from server.fast_path import Begun, FastPath, Written
from server.graphql import PATH
from server.heads import END, Asked, Head, Headers
from server.protocol import Bounds, Protocol, most_connections

log = logging.getLogger(__name__)
RAW_PATH = PATH.encode()
# How long a body has to arrive before it is left to those who wait for slow ones.
BODY_SECONDS = 1


def bounded(max_header_bytes: int) -> Any:
    """For uvicorn's setting `http`: what it makes of each connection."""
    return partial(FastProtocol, Bounds(max_header_bytes, most_connections()))


class FastCycle:
    """A request on the short way. To its connection it looks like one of uvicorn's."""

    __slots__ = (
        "asked",
        "body",
        "disconnected",
        "headers",
        "keep_alive",
        "more_body",
        "protocol",
        "response_complete",
        "response_started",
        "task",
        "timer",
    )

    def __init__(
        self, protocol: "FastProtocol", asked: Asked, headers: Headers, body: bytes = b"", *, complete: bool = False
    ) -> None:
        self.protocol = protocol
        self.asked = asked
        self.headers = headers
        self.body = body
        self.keep_alive = True
        self.more_body, self.response_started = not complete, complete
        self.disconnected = self.response_complete = False
        self.timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None

    @property
    def message_event(self) -> "FastCycle":
        return self

    def set(self) -> None:
        """What uvicorn tells whoever waits for the body."""
        if self.disconnected or not (self.more_body or self.response_started):
            self._disarm()
            if not self.response_started:
                self.response_started = True
                # Who has left in the middle of a body has asked nothing.
                (self.protocol.hand_over if self.more_body else self.protocol.begin)(self)

    def wait(self) -> None:
        """There is more to come: not for long."""
        if self.timer is None and not self.response_started:
            self.timer = self.protocol.loop.call_later(BODY_SECONDS, self._give_up)

    def _give_up(self) -> None:
        self.response_started = True
        self.protocol.hand_over(self)

    def _disarm(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class FastProtocol(Protocol):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._fast: FastPath | None = self.app_state.get("fast_path")
        # Whose address it is that counts; None where it does not.
        self._place: str | None = None
        # A request whose head is known reaches neither the parser nor what that sets.
        self.url, self.headers = b"", []
        # Whoever tells that an answer is complete does it in a context of its own, which is not the request's.
        self._context = copy_context()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        if self._fast is not None and not self._fast.authenticated and self.client is not None:
            self._place = self.client[0]

    def data_received(self, data: bytes) -> None:
        waits, before = self._waits_for_request(), self.cycle
        if waits and self._begin_known(data):
            return
        super().data_received(data)
        if type(self.cycle) is FastCycle:
            if self._in_body:
                self.cycle.wait()
            # What asks for a WebSocket ends, too, and has no cycle of its own.
            elif waits and self.cycle is not before and self._ended and not self._in_headers:
                self._remember(data, self.cycle)

    def _waits_for_request(self) -> bool:
        """Whether the next byte is the first one of a request, which may go the short way."""
        return (
            self._fast is not None
            and self in self._bounds.idle
            and not self._in_headers
            and self._timer is None
            and not self._refused
            and not self.flow.write_paused
        )

    def _begin_known(self, data: bytes) -> bool:
        """Begin to answer a request whose head was read before, if it is that and its body and no more."""
        path = self._fast
        assert path is not None
        start = data.find(END) + len(END)
        head = path.heads.find(data[:start], self._place)
        if head is None or len(data) - start != head.length:
            return False
        asked = path.asked_again(head.asked, head.length)
        if asked is None:
            return False
        del self._bounds.idle[self]
        cycle = self.cycle = self._answering = FastCycle(self, asked, head.headers, data[start:], complete=True)
        self.begin(cycle)
        return True

    def _remember(self, data: bytes, cycle: FastCycle) -> None:
        start = data.find(END) + len(END)
        # Blank lines may have gone before it; and who names each request sends no head twice.
        if self._fast is not None and data[start:] == cycle.body and cycle.asked.request_id is None:
            head = Head(cycle.headers, len(cycle.body), cycle.asked)
            self._fast.heads.keep(data[:start], self._place, head)

    def begin_message(self) -> None:
        """Nothing of what uvicorn prepares is needed yet."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def start_cycle(self) -> None:
        if (
            self._fast is not None
            and self.url == RAW_PATH
            and not self.root_path
            and self.parser.get_method() == b"POST"
            and self.parser.get_http_version() == "1.1"
            and (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
            and (asked := self._fast.asked(self.headers, self.client)) is not None
        ):
            self.cycle = self._answering = FastCycle(self, asked, self.headers)
        else:
            self._prepare(self.headers)
            super().start_cycle()

    def _prepare(self, headers: Headers) -> None:
        """Make up for what `begin_message` has left out."""
        url, expect = self.url, self.expect_100_continue
        super().begin_message()
        # For what goes on for long (server/streams.py).
        self.scope["state"]["transport"] = self.transport
        self.url, self.expect_100_continue = url, expect
        self.headers += headers

    def begin(self, cycle: FastCycle) -> None:
        assert self._fast is not None
        begun = self._fast.begin(cycle.asked, cycle.body, self.scheme or "http")
        if begun is None:
            self.hand_over(cycle)
        # Who has nothing to wait for but memberships is told of them, which takes no task.
        elif not begun.is_paid or not begun.run.tell(partial(self._told, self._fast, cycle, begun)):
            self._wait(self._fast, cycle, begun)

    def _told(self, path: FastPath, cycle: FastCycle, begun: Begun, failure: BaseException | None) -> None:
        try:
            self._context.run(self._complete, path, cycle, begun, failure)
        except Exception:
            # Whoever tells us has others to tell.
            log.exception("a request could not be answered")
            self.transport.abort()

    def _complete(self, path: FastPath, cycle: FastCycle, begun: Begun, failure: BaseException | None) -> None:
        facts.resume(begun.noted)
        if isinstance(failure, asyncio.CancelledError):
            # The process ends.
            path.leave(begun)
            self.transport.abort()
        elif failure is None and not begun.run.is_finished:
            self._wait(path, cycle, begun)
        else:
            self._answer(cycle, begun, path.written(begun, failure))

    def _wait(self, path: FastPath, cycle: FastCycle, begun: Begun) -> None:
        cycle.task = self.loop.create_task(self._finish(path, cycle, begun))
        # The server waits for these when it ends.
        self.tasks.add(cycle.task)

    async def _finish(self, path: FastPath, cycle: FastCycle, begun: Begun) -> None:
        try:
            written = await path.finish(begun)
        finally:
            self.tasks.discard(cycle.task)
        self._answer(cycle, begun, written)

    def _answer(self, cycle: FastCycle, begun: Begun, written: Written | None) -> None:
        if written is None:
            self.hand_over(cycle, begun)
            return
        if cycle.disconnected:
            return
        assert self._fast is not None
        beginning = self._fast.beginning(self.server_state.default_headers)
        if not cycle.keep_alive:
            beginning += b"connection: close\r\n"
        self.transport.write(b"".join((beginning, *written)))
        cycle.response_complete = True
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def hand_over(self, cycle: FastCycle, begun: Begun | None = None) -> None:
        """Have the request answered the long way, as if it had gone it from the start; what is paid is paid."""
        ours = self.url, self.headers, self.scope
        self._prepare(cycle.headers)
        scope = self.scope
        self.url, self.headers, self.scope = ours
        scope["method"], scope["path"], scope["raw_path"], scope["query_string"] = "POST", PATH, RAW_PATH, b""
        if begun is not None:
            assert self._fast is not None
            scope["state"] |= {
                "bill": self._fast.bill(begun),
                "before": begun.run.context.outcomes,
                "began": begun.began,
            }
        handed = RequestResponseCycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=cycle.keep_alive,
            on_response=self.on_response_complete,
        )
        handed.body = bytearray(cycle.body)
        handed.more_body = cycle.more_body
        handed.disconnected = cycle.disconnected
        handed.message_event.set()
        if self.cycle is cycle:
            self.cycle = handed
        self._start_asgi_task(handed, self.app)
