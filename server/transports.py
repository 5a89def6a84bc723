"""Every way in which GraphQL is asked: one answer to one request, a stream of them, or over a WebSocket."""

from datetime import timedelta
from functools import partial
from typing import Any

from cross_web import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket
from strawberry.exceptions import ConnectionRejectionError
from strawberry.schema.base import BaseSchema
from strawberry.subscriptions import GRAPHQL_TRANSPORT_WS_PROTOCOL
from strawberry.types.unset import UNSET, UnsetType

from server.accept import wants_stream
from server.graphql import PATH, GraphQLView, accept_of, origin_of, refusal, wants_page
from server.middleware import SHARE_BYTES
from server.streams import Stream
from server.websockets import INIT_SECONDS, Adapter, Handler, Opened, Shared


class Transports(GraphQLView):
    websocket_adapter_class = Adapter  # type: ignore[assignment]  # as Strawberry's own does
    graphql_transport_ws_handler_class = Handler  # type: ignore[assignment]  # its context is the connection

    def __init__(
        self, schema: BaseSchema, execution_timeout: float, public_url: str | None, shared: Shared, *, graphiql: bool
    ) -> None:
        super().__init__(schema, execution_timeout, public_url, graphiql=graphiql)
        self._shared = shared
        self.protocols = (GRAPHQL_TRANSPORT_WS_PROTOCOL,)
        self.connection_init_wait_timeout = timedelta(seconds=INIT_SECONDS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self.run(WebSocket(scope, receive, send))
            return
        request = Request(scope, receive)
        if scope["path"] == PATH and wants_stream(accept_of(request)) and not wants_page(request):
            await self._stream(request, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def _stream(self, request: Request, receive: Receive, send: Send) -> None:
        if len(await request.body()) > SHARE_BYTES:
            message = f"What is answered by a stream has at most {SHARE_BYTES} bytes."
            await refusal(request, 413, message)(request.scope, receive, send)
            return
        try:
            given = await self.parse_http_body(self.request_adapter_class(request))
        except HTTPException as error:
            await refusal(request, error.status_code, error.reason)(request.scope, receive, send)
            return
        context = await super().get_context(request, Response())
        await Stream(self._shared.sessions, self._shared.operating, request, context).answer(given, receive, send)

    async def get_context(self, request: Any, response: Any) -> Any:
        if isinstance(request, WebSocket):
            return Opened(self._shared, request, partial(origin_of, request, self._public_url))
        return await super().get_context(request, response)

    def is_websocket_origin_allowed(self, request: WebSocket, origin: str) -> bool:
        """It is: whose is not was refused before (server/hosts.py)."""
        return True

    async def on_ws_connect(self, context: Any) -> UnsetType | dict[str, object] | None:
        if not await context.let_in():
            raise ConnectionRejectionError
        nothing: UnsetType = UNSET
        return nothing
