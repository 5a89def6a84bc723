"""How a subscription's messages are made: some at a time, each in bounded time, and one that fails ends nothing."""

import asyncio
from typing import Any

from graphql import ExecutionResult, FieldNode, FragmentSpreadNode, GraphQLError, OperationType
from strawberry.schema.schema import StrawberryGraphQLCoreExecutionContext

from resolvers.context import Context
from resolvers.errors import TimedOut


class Executor(StrawberryGraphQLCoreExecutionContext):
    def execute_operation(self, serially: bool | None = None) -> Any:
        if self.operation.operation is not OperationType.SUBSCRIPTION:
            return super().execute_operation(serially)
        # What the fields of a message are is found out anew for each; graphql-core would remember it of every message
        # for as long as the subscription lasts.
        self._relevant_sub_fields = {}
        return self._message(serially)

    async def _message(self, serially: bool | None) -> Any:
        context: Context = self.context_value
        # Thousands may be told of one change: they take turns, like queries, and leave some time to everybody else.
        async with context.services.subscriptions.turns.one(context.payer):
            try:
                async with asyncio.timeout(context.message_seconds):
                    result = super().execute_operation(serially)
                    return await result if self.is_awaitable(result) else result
            except TimeoutError:
                error = TimedOut()
                # With a path it is the message that has failed, and not the subscription.
                return ExecutionResult(None, [GraphQLError(str(error), path=[self._name()], original_error=error)])

    def _name(self) -> str:
        """What the caller calls the one field."""
        selection = self.operation.selection_set.selections[0]
        while not isinstance(selection, FieldNode):
            fragment: Any = selection
            if isinstance(selection, FragmentSpreadNode):
                fragment = self.fragment_definitions[selection.name.value]
            selection = fragment.selection_set.selections[0]
        return (selection.alias or selection.name).value
