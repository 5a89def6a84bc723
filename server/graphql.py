"""GraphQL over HTTP: which requests are understood, and which status and media type an answer has."""

import asyncio
import json
import re
from functools import partial
from time import perf_counter
from typing import Any

import orjson
from cross_web import AsyncHTTPRequestAdapter, HTTPException
from graphql import GraphQLError
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket
from strawberry.asgi import GraphQL
from strawberry.exceptions import MissingQueryError
from strawberry.http import GraphQLHTTPResponse, GraphQLRequestData
from strawberry.http.base import BaseRequestProtocol
from strawberry.schema.base import BaseSchema
from strawberry.schema.exceptions import CannotGetOperationTypeError, InvalidOperationTypeError
from strawberry.types import ExecutionResult, SubscriptionExecutionResult
from strawberry.types.graphql import OperationType

from resolvers import facts
from resolvers.context import Context
from resolvers.errors import TimedOut
from server import graphiql
from server.accept import GRAPHQL_RESPONSE, JSON, negotiated
from server.errors import answer_of
from server.naming import DOCUMENT_ID, RELAY_IDS, with_names

PATH = "/graphql"
PARAMETERS = {
    "query": (str, "a string"),
    "operationName": (str, "a string"),
    DOCUMENT_ID: (str, "a string"),
    "variables": (dict, "an object"),
    "extensions": (dict, "an object"),
}
# Of a header that we take apart. No client that means it sends more, and the HTTP server sets no limit.
HEADER_CHARACTERS = 1_000
# Numbers that orjson may not keep exactly, in which case the slower parser reads the body again.
# All digits alike: so they are found a hundred times as fast as by a pattern, in a body of megabytes.
DIGITS = bytes.maketrans(b"123456789E", b"000000000e")
LONG_NUMBERS = (b"0" * 16, b"0e")
# Up to so many the value made of them is looked at before the text is taken apart.
FEW_BYTES = 2_000
# Each takes up to two hundred bytes, of two that are sent. A bulk change of the largest size has 300 000.
MOST_VALUES = 500_000
SEPARATORS = (b",", b"[", b"{")
# Where nothing is escaped. A text that does not end is one, too: so nothing is looked at twice.
TEXTS = re.compile(rb'"[^"]*"?')
# A value may have a name, and both may be texts.
MOST_QUOTES = 4 * (MOST_VALUES + 1)
# From here on a floating-point number stands for several whole ones: it could be one user's id, or another's.
INEXACT = 2**53
# What is answered at once.
ANSWERED = {"GET": {OperationType.QUERY}, "POST": {OperationType.QUERY, OperationType.MUTATION}}
NO_QUERY = "No GraphQL query found in the request"
NO_STREAM = (
    "A subscription is answered over WebSocket (graphql-transport-ws), or as a stream where `Accept` names "
    "text/event-stream before all others."
)
NO_PAGE = "There is no page here: GraphQL is asked with POST. GraphiQL is served where SEGMENTQL_GRAPHIQL is on."
# What is refused by its status alone is the caller's mistake, but for these.
REFUSALS = {
    401: "UNAUTHENTICATED",
    403: "FORBIDDEN",
    413: "LIMIT_EXCEEDED",
    429: "RATE_LIMITED",
    503: "OVERLOADED",
}
# Of an answer without data, where it is not the request that is wrong.
STATUSES = {"TIMEOUT": 503, "OVERLOADED": 503, "INTERNAL_SERVER_ERROR": 500}
# Of a whole request that was refused before its execution, whatever the media type: proxies and clients of HTTP know
# what these mean.
REFUSED = {"UNAUTHENTICATED": 401, "FORBIDDEN": 403, "RATE_LIMITED": 429}


class GraphQLView(GraphQL[Context, None]):
    def __init__(self, schema: BaseSchema, execution_timeout: float, public_url: str | None, *, graphiql: bool) -> None:
        super().__init__(schema, graphql_ide=None, subscription_protocols=())
        self._execution_timeout = execution_timeout
        self._public_url = public_url
        self._graphiql = graphiql

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            response = await self._answer(request)
        except HTTPException as error:
            response = refusal(request, error.status_code, error.reason)
            if isinstance(error.__cause__, InvalidOperationTypeError):
                response = refusal(request, 405, "Mutations are sent with POST.", {"Allow": "POST"})
                if error.__cause__.operation_type is OperationType.SUBSCRIPTION:
                    response = refusal(request, 400, NO_STREAM)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        # A route takes also what ends in a newline, which whoever looks at the path before us does not mean.
        if request.scope["path"] != PATH:
            return refusal(request, 404, "There is nothing here.")
        if wants_page(request):
            return graphiql.page() if self._graphiql else refusal(request, 404, NO_PAGE)
        if _media(request) is None:
            raise HTTPException(406, f"Answers are {GRAPHQL_RESPONSE} or {JSON}; Accept must allow one of them.")
        return await self.run(request)

    def should_render_graphql_ide(self, request: BaseRequestProtocol) -> bool:
        """Never: Strawberry's page is loaded from other hosts, and ours was answered before."""
        return False

    async def get_context(self, request: Request | WebSocket, response: Response | WebSocket) -> Context:
        # Without a caller nothing is executed (server/authentication.py).
        before = getattr(request.state, "before", None)
        origin = partial(origin_of, request, self._public_url)
        return Context.of(request.state.services, request.state.caller, request.state.payer, origin, before)

    async def parse_http_body(self, request: AsyncHTTPRequestAdapter) -> GraphQLRequestData:
        if request.method == "GET":
            given = self.parse_query_params(request.query_params)
            # A URL has no other way to say null.
            given["operationName"] = given.get("operationName") or None
        elif is_json(request.content_type):
            given = self.parse_json(await request.get_body())
        else:
            raise HTTPException(415, f"The body must be {JSON}, in UTF-8.")
        for name, (type_, what) in PARAMETERS.items():
            if not isinstance(given.get(name), type_ | None):
                raise HTTPException(400, f"{name} must be {what} or null.")
        return GraphQLRequestData(
            query=given.get("query"),
            variables=given.get("variables"),
            operation_name=given.get("operationName"),
            extensions=with_names(given, given.get("extensions")),
        )

    def parse_json(self, data: str | bytes) -> Any:
        """A body, which is an object, or a URL's parameter, which may be null. What no store could keep is refused."""
        if _values(data) > MOST_VALUES:
            raise HTTPException(413, f"There are more than {MOST_VALUES} values in this JSON.")
        try:
            value = orjson.loads(data)
            if may_be_inexact(value, data if isinstance(data, bytes) else data.encode()):
                value = json.loads(data, parse_float=_exact)
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, "This is not JSON in UTF-8, or it is nested too deeply.") from error
        if isinstance(value, dict) or (value is None and isinstance(data, str)):
            return value
        raise HTTPException(400, "There must be one JSON object; batches are not supported.")

    def encode_json(self, data: object) -> bytes:
        return orjson.dumps(data)

    async def execute_operation(
        self, request: Request, *args: Any, **kwargs: Any
    ) -> ExecutionResult | list[ExecutionResult] | SubscriptionExecutionResult:
        # What was begun on the short way, and given up there, has no more time than others.
        began: float | None = getattr(request.state, "began", None)
        spent = 0 if began is None else perf_counter() - began
        try:
            async with asyncio.timeout(self._execution_timeout - spent):
                return await super().execute_operation(request, *args, **kwargs)
        except TimeoutError:
            timed_out = TimedOut()
            return ExecutionResult(data=None, errors=[GraphQLError(str(timed_out), original_error=timed_out)])

    async def execute_single(
        self, request: Request, request_adapter: AsyncHTTPRequestAdapter, *args: Any, **kwargs: Any
    ) -> ExecutionResult:
        # Strawberry's own would take a subscription for a query here.
        given: GraphQLRequestData = kwargs["request_data"]
        try:
            return await self.schema.execute(
                given.query,
                given.variables,
                kwargs["context"],
                kwargs["root_value"],
                given.operation_name,
                ANSWERED[request_adapter.method],
                given.extensions,
            )
        except InvalidOperationTypeError as error:
            raise HTTPException(400, error.as_http_error_reason(request_adapter.method)) from error
        except CannotGetOperationTypeError as error:
            raise HTTPException(400, error.as_http_error_reason()) from error
        except MissingQueryError as error:
            raise HTTPException(400, NO_QUERY) from error

    async def get_sub_response(self, request: Request | WebSocket) -> Response:
        response = await super().get_sub_response(request)
        response.media_type = _media(request)
        return response

    async def process_result(self, request: Request, result: ExecutionResult) -> GraphQLHTTPResponse:
        answer = answer_of(result)
        if "errors" in answer:
            facts.current().code = str(answer["errors"][0]["extensions"]["code"])
        return answer  # type: ignore[return-value]  # Strawberry's type says that `data` is always there

    def create_response(
        self, response_data: GraphQLHTTPResponse | list[GraphQLHTTPResponse], sub_response: Response
    ) -> Response:
        media = sub_response.media_type or JSON
        status = 200
        if isinstance(response_data, dict) and "data" not in response_data:
            codes = _codes(response_data)
            if refused := codes & REFUSED.keys():
                status = REFUSED[refused.pop()]
            # Clients of the older media type take every other status for a failure of HTTP.
            elif media == GRAPHQL_RESPONSE:
                status = max(STATUSES.get(code, 400) for code in codes)
        return Response(self.encode_json(response_data), status, {"Content-Type": f"{media}; charset=utf-8"})


def refusal(
    request: HTTPConnection, status: int, message: str, headers: dict[str, str] | None = None, **extensions: object
) -> Response:
    """What cannot be understood as GraphQL over HTTP still gets an answer that a GraphQL client can read."""
    code = REFUSALS.get(status, "BAD_USER_INPUT")
    facts.current().code = code
    body = orjson.dumps({"errors": [{"message": message, "extensions": {"code": code, **extensions}}]})
    media = _media(request) or JSON
    return Response(body, status, {"Content-Type": f"{media}; charset=utf-8", **(headers or {})})


def not_allowed(request: Request) -> Response | None:
    """Of another method not even the caller is looked for, nor any body."""
    if request.method in ("GET", "POST"):
        return None
    return refusal(request, 405, "GraphQL is asked with GET or POST.", {"Allow": "GET, POST"})


def wants_page(request: Request) -> bool:
    return (
        request.method == "GET"
        and not request.query_params.keys() & {"query", DOCUMENT_ID, *RELAY_IDS, "extensions"}
        and "text/html" in request.headers.get("accept", "")
    )


def origin_of(request: Request | WebSocket, public_url: str | None) -> str:
    """Scheme and host as the caller wrote them, unless others were set: whoever is told of them is the caller."""
    return public_url or f"{request.url.scheme}://{request.url.netloc}"


def _media(request: HTTPConnection) -> str | None:
    return negotiated(accept_of(request))


def accept_of(request: HTTPConnection) -> str:
    return ",".join(request.headers.getlist("accept"))[:HEADER_CHARACTERS]


def _values(data: str | bytes) -> int:
    """How many there may be at the most; more exactly, should that be too many: in a text a comma is none."""
    text = data if isinstance(data, bytes) else data.encode()
    found = sum(map(text.count, SEPARATORS))
    if found <= MOST_VALUES:
        return found
    text = _unescaped(text)
    if text.count(b'"') >= MOST_QUOTES:
        return MOST_VALUES + 1
    return sum(map(TEXTS.sub(b"", text).count, SEPARATORS))


def may_be_inexact(value: Any, text: bytes) -> bool:
    """Whether orjson may not have kept a number of the text exactly, of which it has made the value."""
    if not _long_in(text.translate(DIGITS)):
        return False
    # Most have such digits in texts alone: in keys of mutations, for instance. Of much the text tells it sooner.
    if len(text) <= FEW_BYTES and not _has_fractions(value):
        return False
    return _long_in(TEXTS.sub(b"", _unescaped(text)).translate(DIGITS))


def _has_fractions(value: Any) -> bool:
    """What orjson takes for a whole number is exactly that."""
    values = [value]
    for each in values:  # it becomes longer meanwhile
        kind = type(each)
        if kind is dict:
            values += each.values()
        elif kind is list:
            values += each
        elif kind is float:
            return True
    return False


def _long_in(digits: bytes) -> bool:
    return LONG_NUMBERS[0] in digits or LONG_NUMBERS[1] in digits


def _unescaped(text: bytes) -> bytes:
    """Without what could be taken for the end of a text and is none."""
    return text.replace(b"\\\\", b"").replace(b'\\"', b"")


def _exact(digits: str) -> float:
    value = float(digits)
    if abs(value) >= INEXACT:
        raise ValueError(digits)
    return value


def _codes(answer: Any) -> set[str]:
    return {error["extensions"]["code"] for error in answer["errors"]}


def is_json(content_type: str | None) -> bool:
    parts = (content_type or "")[:HEADER_CHARACTERS].split(";")
    media, *parameters = (part.strip().lower() for part in parts)
    charsets = [p.partition("=")[2].strip('"') for p in parameters if p.partition("=")[0].strip() == "charset"]
    return media == JSON and all(charset in ("utf-8", "utf8") for charset in charsets)
