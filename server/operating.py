"""An operation over a connection that stays: executed like a request's, once or again and again."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from graphql import GraphQLError
from strawberry.exceptions import MissingQueryError
from strawberry.http import GraphQLRequestData
from strawberry.schema.base import BaseSchema
from strawberry.schema.exceptions import CannotGetOperationTypeError, InvalidOperationTypeError
from strawberry.types import ExecutionResult
from strawberry.types.execution import PreExecutionError
from strawberry.types.graphql import OperationType

from resolvers import facts
from resolvers.context import Context
from resolvers.errors import BadUserInput, TimedOut
from server.errors import answer_of
from server.graphql import NO_QUERY, PATH
from server.requests import conclude

# Of which operation is meant nothing is known then. Over HTTP the request is refused for it (server/graphql.py).
MISTAKES = (MissingQueryError, CannotGetOperationTypeError, InvalidOperationTypeError)
# One warning in so long of messages that fail.
WARN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Way:
    """By which operations come in, and what it is as a request: that is counted and logged."""

    allowed: Collection[OperationType]
    method: str
    # With which an answer is sent.
    status: Callable[[dict[str, Any]], int]


class Operating:
    def __init__(self, schema: BaseSchema, execution_timeout: float, slow_ms: int) -> None:
        self._schema = schema
        self._execution_timeout = execution_timeout
        self._slow_ms = slow_ms
        self._warned = float("-inf")

    async def answers(
        self, given: GraphQLRequestData, context: Context, way: Way
    ) -> AsyncGenerator[dict[str, Any], None]:
        """What a caller is told: one answer, or a subscription's messages. Without `data` it is the last.

        The first has to come in time. It is counted and logged then; a subscription may go on for days.
        """
        began, noted = perf_counter(), facts.current()
        context.message_seconds = self._execution_timeout
        results: AsyncGenerator[Any, None] = await self._schema.stream(
            given.query,
            given.variables,
            context,
            None,
            given.operation_name,
            given.extensions,
            way.allowed,
        )
        try:
            async with aclosing(results):
                answer = await self._first(results)
                self._conclude(began, answer, way)
                context.failed = "errors" in answer
                yield answer
                async for result in results:
                    answer = told(result, quiet=bool(result.errors) and not self._warns())
                    context.failed = "errors" in answer
                    yield answer
        finally:
            if not noted.concluded:  # whoever has asked has left before
                conclude(noted, way.method, PATH, 0, perf_counter() - began, 0, self._slow_ms)

    async def _first(self, results: AsyncGenerator[ExecutionResult, None]) -> dict[str, Any]:
        try:
            async with asyncio.timeout(self._execution_timeout):
                result = await anext(results)
        except TimeoutError:
            timed_out = TimedOut()
            result = PreExecutionError(data=None, errors=[GraphQLError(str(timed_out), original_error=timed_out)])
        except GraphQLError as error:  # what our extensions refuse before Strawberry looks at it
            result = PreExecutionError(data=None, errors=[error])
        errors = result.errors or []
        if any(isinstance(error.original_error, MISTAKES) for error in errors):
            result = PreExecutionError(data=None, errors=[_mistake(error) for error in errors])
        answer = told(result)
        if isinstance(result, PreExecutionError):
            answer.pop("data", None)  # a refused subscription has none, though it has a path
        return answer

    def _warns(self) -> bool:
        """Whether a message that fails is logged: thousands may be told the same at once, and fail at the same."""
        now = perf_counter()
        if now - self._warned < WARN_SECONDS:
            return False
        self._warned = now
        return True

    def _conclude(self, began: float, answer: dict[str, Any], way: Way) -> None:
        noted = facts.current()
        if "errors" in answer:
            noted.code = str(answer["errors"][0]["extensions"].get("code"))
        conclude(noted, way.method, PATH, way.status(answer), perf_counter() - began, 0, self._slow_ms)


def _mistake(error: GraphQLError) -> GraphQLError:
    message = error.message
    if isinstance(error.original_error, MissingQueryError):
        message = NO_QUERY
    return GraphQLError(message, extensions={"code": BadUserInput.code})


def told(result: ExecutionResult, *, quiet: bool = False) -> dict[str, Any]:
    """A result as its caller may see it."""
    if facts.current().kind is not None:  # the document is valid: what is wrong is an argument, or on our side
        result = ExecutionResult(result.data, result.errors, result.extensions)
    return answer_of(result, quiet=quiet)
