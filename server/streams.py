"""GraphQL as server-sent events, by graphql-sse's distinct connections: each operation is a response that goes on."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Send
from strawberry.http import GraphQLRequestData
from strawberry.types.graphql import OperationType

from resolvers import facts
from resolvers.callers import ANONYMOUS, Caller
from resolvers.context import Context
from resolvers.errors import LimitExceeded, Overloaded, Unauthenticated
from server import metrics
from server.accept import JSON, STREAM
from server.admission import Place
from server.authentication import shown_by
from server.graphql import REFUSED
from server.middleware import CLOSE
from server.operating import Operating, Way
from server.sessions import Ending, Session, Sessions, in_time
from server.websocket_protocol import limit_unsent

HEADERS = {
    "Content-Type": f"{STREAM}; charset=utf-8",
    # Proxies hold back what they take for an ordinary answer, or for one to compress.
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",
}
# Proxies drop a connection over which nothing goes for half a minute, some of them.
BEAT_SECONDS = 13.0
BEAT = b":\n\n"
ALLOWED = {
    "GET": frozenset({OperationType.QUERY, OperationType.SUBSCRIPTION}),
    "POST": frozenset(OperationType),
}
OK = 200

Answers = AsyncGenerator[dict[str, Any], None]


class TooSlowError(Exception):
    """Whoever asked does not read."""


class Stream:
    """One operation's answers, on their way."""

    def __init__(self, sessions: Sessions, operating: Operating, request: Request, context: Context) -> None:
        caller: Caller = request.state.caller
        self._sessions = sessions
        self._operating = operating
        self._request = request
        self._context = context
        shown = None if caller is ANONYMOUS else shown_by(request)
        self._session = Session(caller, shown, context.payer, self._end)
        self._ended: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        # How it begins is said with the first answer: then it is known whether it does.
        self._begun = asyncio.Event()
        context.drop = self._session.drop

    def _end(self, ending: Ending) -> None:
        if not self._ended.done():
            self._ended.set_result(ending)

    async def answer(self, given: GraphQLRequestData, receive: Receive, send: Send) -> None:
        """Send all there is, until it ends or is ended."""
        method = self._request.method
        answers = self._operating.answers(given, self._context, Way(ALLOWED[method], method, _status))
        try:
            self._sessions.open(self._session)
            try:
                await self._go_on(answers, receive, send)
            finally:
                self._sessions.close(self._session)
        except LimitExceeded as error:
            await self._refuse(429, str(error), error.extensions, send)
        except Overloaded as error:  # we leave, and whoever asks again comes to another process
            await self._refuse(503, str(error), error.extensions, send)
        except TooSlowError:
            metrics.subscribers_dropped.inc()
            self._request.state.transport.abort()
        finally:
            self._context.let_go()
        if self._begun.is_set():
            await send({"type": "http.response.body"})

    async def _go_on(self, answers: Answers, receive: Receive, send: Send) -> None:
        tasks = [asyncio.create_task(work) for work in (self._tell(answers, send), self._beat(send), _left(receive))]
        waited: list[asyncio.Future[Any]] = [*tasks, self._ended]
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception):
                raise end
        if self._ended.done() and self._ended.result() is Ending.TOO_SLOW:
            self._request.state.transport.abort()
        elif self._ended.done() and self._ended.result() is Ending.NOT_GOOD and self._begun.is_set():
            error = Unauthenticated()
            answer = {"errors": [{"message": str(error), "extensions": error.extensions}]}
            await _send(send, _event("next", answer) + _event("complete"))

    async def _tell(self, answers: Answers, send: Send) -> None:
        async with aclosing(answers):
            async for answer in answers:
                if not self._begun.is_set():
                    if (status := _status(answer)) != OK:
                        error = answer["errors"][0]
                        await self._refuse(status, error["message"], error["extensions"], send)
                        return
                    await self._begin(send)
                await _send(send, _event("next", answer))
                self._sessions.told()
        await _send(send, _event("complete"))

    async def _begin(self, send: Send) -> None:
        headers = HEADERS
        if facts.current().kind == "subscription":
            limit_unsent(self._request.state.transport)
            # The kernel does not take that back, and the next answer may be a large one.
            headers = HEADERS | CLOSE
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": OK, "headers": raw})
        self._begun.set()
        # It is one of those that are executed no more.
        place: Place = self._request.state.place
        place.leave()

    async def _refuse(self, status: int, message: str, extensions: dict[str, Any], send: Send) -> None:
        body = orjson.dumps({"errors": [{"message": message, "extensions": extensions}]})
        facts.current().code = str(extensions["code"])
        response = Response(body, status, media_type=f"{JSON}; charset=utf-8")
        await response(self._request.scope, self._request.receive, send)

    async def _beat(self, send: Send) -> None:
        await self._begun.wait()
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            await _send(send, BEAT)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send(send: Send, chunk: bytes) -> None:
    try:
        async with in_time():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except TimeoutError as error:
        raise TooSlowError from error


def _event(name: str, answer: dict[str, Any] | None = None) -> bytes:
    # JSON as it is written here has no line ends. Without a data field browsers drop the event.
    return b"event: %b\ndata: %b\n\n" % (name.encode(), b"" if answer is None else orjson.dumps(answer))


def _status(answer: dict[str, Any]) -> int:
    """Of a request that was refused before its execution one that clients of HTTP know."""
    if "errors" not in answer or "data" in answer:
        return OK
    return next((REFUSED[code] for error in answer["errors"] if (code := error["extensions"]["code"]) in REFUSED), OK)
