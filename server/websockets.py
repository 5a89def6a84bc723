"""GraphQL over a WebSocket, by graphql-transport-ws: who asks, how much at a time, and how fast they have to read."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NoReturn

import orjson
from cross_web import HTTPException
from graphql import GraphQLError
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState
from strawberry.asgi import ASGIWebSocketAdapter
from strawberry.http import GraphQLRequestData
from strawberry.http.exceptions import NonJsonMessageReceived, NonTextMessageReceived, WebSocketDisconnected
from strawberry.subscriptions.protocols.graphql_transport_ws.handlers import BaseGraphQLTransportWSHandler, Operation
from strawberry.subscriptions.protocols.graphql_transport_ws.types import ConnectionInitMessage, SubscribeMessage
from strawberry.types import ExecutionResult
from strawberry.types.graphql import OperationType

from resolvers import facts
from resolvers.callers import ANONYMOUS
from resolvers.context import Context
from resolvers.errors import ApiError, LimitExceeded, Overloaded, RateLimited
from server import metrics
from server.admission import RETRY_MS, Bill, Gate, Place, bucket_of_caller, paying
from server.authentication import Logins, NotIn, bearer, shown_by
from server.errors import answer_of
from server.graphql import PARAMETERS
from server.naming import with_names
from server.operating import Operating, Way
from server.requests import new_id
from server.sessions import Ending, Session, Sessions, in_time

# Operations of one connection at a time.
MOST_OPERATIONS = 100
# How long a client has to say who it is.
INIT_SECONDS = 10
# How a WebSocket is closed that may be opened a little later.
TRY_AGAIN = 1013
# The request was the one for the connection.
WAY = Way(frozenset(OperationType), "GET", lambda _: 200)


@dataclass(frozen=True, slots=True)
class Shared:
    """What all these connections share."""

    logins: Logins
    gate: Gate
    sessions: Sessions
    operating: Operating


class Opened:
    """A connection that was accepted, before and after it is known whose it is."""

    def __init__(self, shared: Shared, websocket: WebSocket, origin: Callable[[], str]) -> None:
        self.shared = shared
        self.websocket = websocket
        self.origin = origin
        # Strawberry puts there what the client says at the beginning.
        self.connection_params: dict[str, object] = {}
        self.session: Session | None = None

    async def let_in(self) -> bool:
        """Find out who it is, and whether they may come in. Whoever may later is told so."""
        shown, caller = None, ANONYMOUS
        if self.shared.logins.required:
            shown = _shown(self.connection_params) or shown_by(self.websocket)
            found = await self.shared.logins.caller(self.websocket, shown)
            if isinstance(found, NotIn):
                if found.status == HTTPStatus.SERVICE_UNAVAILABLE:
                    self._turn_away(found.message)
                return False
            caller = found
        session = Session(caller, shown, bucket_of_caller(caller, self.websocket.state.address), self._end)
        try:
            self.shared.sessions.open(session)
        except LimitExceeded as error:
            self._turn_away(str(error))
        except Overloaded:
            self._end(Ending.LEAVING)
            raise WebSocketDisconnected from None
        self.session = session
        return True

    def leave(self) -> None:
        if self.session is not None:
            self.shared.sessions.close(self.session)
        # It refers to what it is kept by.
        self.session = None

    def _turn_away(self, why: str) -> NoReturn:
        self.websocket.state.end(TRY_AGAIN, _short(why))
        raise WebSocketDisconnected

    def _end(self, ending: Ending) -> None:
        # Only the server can close it without waiting for whoever does not read (server/websocket_protocol.py).
        self.websocket.state.end(ending.code, ending.reason)


class Adapter(ASGIWebSocketAdapter):
    ws: WebSocket

    async def iter_json(self, *, ignore_parsing_errors: bool = False) -> AsyncGenerator[object, None]:
        while self.ws.application_state != WebSocketState.DISCONNECTED:
            try:
                text = await self.ws.receive_text()
            except WebSocketDisconnect:
                return
            except KeyError as error:
                raise NonTextMessageReceived from error
            try:
                yield self.view.parse_json(text)
            except HTTPException as error:
                raise NonJsonMessageReceived from error

    async def send_json(self, message: Mapping[str, object]) -> None:
        try:
            async with in_time():
                await self.ws.send_text(orjson.dumps(message).decode())
        except TimeoutError as error:
            metrics.subscribers_dropped.inc()
            self.ws.state.end(Ending.TOO_SLOW.code, Ending.TOO_SLOW.reason)
            raise WebSocketDisconnected from error
        except (WebSocketDisconnect, RuntimeError) as error:  # it was closed meanwhile
            raise WebSocketDisconnected from error

    async def close(self, code: int, reason: str) -> None:
        with suppress(WebSocketDisconnect, RuntimeError):
            await self.ws.close(code=code, reason=_short(reason))


class Handler(BaseGraphQLTransportWSHandler[Opened, None]):
    async def handle(self) -> None:
        try:
            await super().handle()
        finally:
            self.context.leave()

    async def handle_message(self, message: Any) -> None:
        if isinstance(message, dict) and isinstance(message.get("id", ""), str):
            await super().handle_message(message)  # type: ignore[arg-type]  # what is missing it notices
        else:
            await self.handle_invalid_message("A message is an object, and its id a string")

    async def handle_connection_init(self, message: ConnectionInitMessage) -> None:
        if message.get("payload") is None:
            message = {"type": "connection_init", "payload": {}}
        await super().handle_connection_init(message)
        if self.connection_init_received:
            # It was cancelled, and would be kept for as long as the connection, with the traceback of that.
            self.connection_init_timeout_task = None

    async def handle_subscribe(self, message: SubscribeMessage) -> None:
        if not self.connection_acknowledged:
            await self.websocket.close(4401, "Unauthorized")
            return
        id_ = message["id"]
        if id_ in self.operations:
            await self.websocket.close(4409, f"Subscriber for {id_} already exists")
            return
        given = _request(message["payload"])
        if isinstance(given, str):
            await self.handle_invalid_message(given)
            return
        if len(self.operations) >= MOST_OPERATIONS:
            error = LimitExceeded(f"A connection has at most {MOST_OPERATIONS} operations at a time.")
            await self.send_message(_message(id_, "error", [_formatted(error)]))
            return
        operation = self.operations[id_] = Asked(self, id_, given)
        operation.task = asyncio.create_task(self.run_operation(operation))
        operation.task.add_done_callback(self._task_done)

    async def run_operation(self, operation: "Operation[Opened, None]") -> None:
        assert isinstance(operation, Asked)
        try:
            await self._run(operation)
        except WebSocketDisconnected:
            return
        except Exception as error:  # noqa: BLE001  # it is logged, and nobody waits for ever
            with suppress(WebSocketDisconnected):
                await operation.fail(_unexpected(error))
        finally:
            if self.operations.get(operation.id) is operation:
                del self.operations[operation.id]

    async def _run(self, operation: "Asked") -> None:
        opened, session = self.context, self.context.session
        assert session is not None
        shared, state = opened.shared, opened.websocket.state
        noted = facts.begin()
        noted.request_id, noted.client = new_id(), session.caller.client
        if (refused := _refused(shared.gate, session.bucket)) is not None:
            await operation.fail([_formatted(refused)])
            return
        context = Context.of(state.services, session.caller, session.bucket, opened.origin)
        context.drop = session.drop
        # A message is too short to cost anything by its size (BYTES of server/admission.py).
        bill = Bill(session.bucket, state.limiter, shared.gate.policy, shared.gate.empty)
        state.traffic.note()
        place = Place(shared.gate, session.bucket)
        answers = shared.operating.answers(operation.given, context, WAY)
        try:
            with paying(bill):
                async with aclosing(answers):
                    async for answer in answers:
                        place.leave()
                        if "data" not in answer:
                            await bill.settle()
                            await operation.fail(answer["errors"])
                            return
                        shared.sessions.told()
                        await operation.send_operation_message(_message(operation.id, "next", answer))
        finally:
            place.leave()
            context.let_go()
        await operation.send_operation_message({"id": operation.id, "type": "complete"})


class Asked(Operation[Opened, None]):
    """An operation with all that was said of it."""

    __slots__ = ("given",)

    def __init__(self, handler: Handler, id: str, given: GraphQLRequestData) -> None:
        super().__init__(handler, id, given.query or "", given.variables, given.operation_name)
        self.given = given

    async def fail(self, errors: list[Any]) -> None:
        await self.send_operation_message(_message(self.id, "error", errors))


def _message(id: str, type_: str, payload: object) -> Any:
    return {"id": id, "type": type_, "payload": payload}


def _shown(params: Mapping[str, object]) -> str | None:
    """The token that is shown at the beginning: as the header has it, or by itself."""
    for name in ("Authorization", "authorization"):
        if isinstance(value := params.get(name), str):
            return bearer(value) or ""
    token = params.get("token")
    return token if isinstance(token, str) else None


def _request(payload: object) -> GraphQLRequestData | str:
    """What is asked, or what is wrong with it."""
    if not isinstance(payload, dict):
        return "payload must be an object"
    for name, (type_, what) in PARAMETERS.items():
        if not isinstance(payload.get(name), type_ | None):
            return f"{name} must be {what} or null"
    return GraphQLRequestData(
        payload.get("query"),
        payload.get("variables"),
        payload.get("operationName"),
        with_names(payload, payload.get("extensions")),
    )


def _refused(gate: Gate, bucket: str) -> ApiError | None:
    if not gate.has_place(bucket):
        return Overloaded()
    return None if gate.is_open(bucket) else RateLimited(RETRY_MS)


def _unexpected(error: Exception) -> Any:
    """What became of an operation that nobody has foreseen; it is in the log then."""
    return answer_of(ExecutionResult(None, [GraphQLError(str(error), original_error=error)]))["errors"]


def _formatted(error: ApiError) -> dict[str, object]:
    return {"message": str(error), "extensions": error.extensions}


def _short(reason: str) -> str:
    """As much as a close frame may carry."""
    return reason.encode()[:120].decode(errors="ignore")
