"""An operation over a connection that stays: executed like a request's, once or again and again."""

import asyncio
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from time import perf_counter
from typing import Any

from graphql import GraphQLError
from strawberry.http import GraphQLRequestData
from strawberry.schema.base import BaseSchema
from strawberry.types import ExecutionResult
from strawberry.types.execution import PreExecutionError
from strawberry.types.graphql import OperationType

from resolvers import facts
from resolvers.context import Context
from resolvers.errors import TimedOut
from server.errors import answer_of
from server.graphql import PATH
from server.requests import conclude

# Of whatever comes as a request for it.
METHOD, OK = "GET", 200


class Operating:
    def __init__(self, schema: BaseSchema, execution_timeout: float, slow_ms: int) -> None:
        self._schema = schema
        self._execution_timeout = execution_timeout
        self._slow_ms = slow_ms

    async def answers(
        self, given: GraphQLRequestData, context: Context, allowed: Collection[OperationType]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """What a caller is told: one answer, or a subscription's messages. Without `data` it is the last.

        The first has to come in time. It is counted and logged then; a subscription may go on for days.
        """
        began, noted = perf_counter(), facts.current()
        results: AsyncGenerator[Any, None] = await self._schema.stream(
            given.query,
            given.variables,
            context,
            None,
            given.operation_name,
            given.extensions,
            allowed,
        )
        try:
            async with aclosing(results):
                answer = await self._first(results)
                self._conclude(began, answer)
                yield answer
                async for result in results:
                    yield told(result)
        finally:
            if not noted.concluded:  # whoever has asked has left before
                conclude(noted, METHOD, PATH, 0, perf_counter() - began, 0, self._slow_ms)

    async def _first(self, results: AsyncGenerator[ExecutionResult, None]) -> dict[str, Any]:
        try:
            async with asyncio.timeout(self._execution_timeout):
                result = await anext(results)
        except TimeoutError:
            timed_out = TimedOut()
            result = PreExecutionError(data=None, errors=[GraphQLError(str(timed_out), original_error=timed_out)])
        except GraphQLError as error:  # what our extensions refuse before Strawberry looks at it
            result = PreExecutionError(data=None, errors=[error])
        answer = told(result)
        if isinstance(result, PreExecutionError):
            answer.pop("data", None)  # a refused subscription has none, though it has a path
        return answer

    def _conclude(self, began: float, answer: dict[str, Any]) -> None:
        noted = facts.current()
        if "errors" in answer:
            noted.code = str(answer["errors"][0]["extensions"].get("code"))
        conclude(noted, METHOD, PATH, OK, perf_counter() - began, 0, self._slow_ms)


def told(result: ExecutionResult) -> dict[str, Any]:
    """A result as its caller may see it."""
    if facts.current().kind is not None:  # the document is valid: what is wrong is an argument, or on our side
        result = ExecutionResult(result.data, result.errors, result.extensions)
    return answer_of(result)
