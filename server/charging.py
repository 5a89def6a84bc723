"""What an operation costs, taken from its caller before it is executed."""

import weakref
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from graphql import DocumentNode, GraphQLSchema
from strawberry.extensions import SchemaExtension
from strawberry.types import ExecutionContext

from schema.costs import Price
from server import admission
from server.access import chosen

# Of the request's `extensions`: whoever sets it to true is told, under the same name in the answer's.
COST = "cost"
# What a document costs that is not known yet: a point for each so many tokens, or for each so many characters where
# that is more. It takes about a millisecond to parse and validate these.
TOKENS, CHARACTERS = 25, 500


class Charging:
    """Prices of documents that were found valid: what does not depend on the variables is found out once."""

    def __init__(self) -> None:
        # By document, for as long as it is kept (server/documents.py), and by the name of the operation.
        self._prices: dict[int, dict[str | None, Price]] = {}

    def extension(self) -> SchemaExtension:
        return Charge(self)

    def points(self, context: ExecutionContext) -> int:
        try:
            return self._price(context).points(context.variables)
        except RecursionError:  # only where far more levels are allowed than by default
            return 1

    def _price(self, context: ExecutionContext) -> Price:
        document = context.graphql_document
        assert document is not None
        name = context._provided_operation_name  # noqa: SLF001  # the property would not do: see server/documents.py
        prices = self._prices.get(id(document))
        if prices is None:
            prices = self._prices[id(document)] = {}
            weakref.finalize(document, self._prices.pop, id(document))
        if name not in prices:
            schema: GraphQLSchema = context.schema._schema  # noqa: SLF001  # the one way to graphql-core's schema
            prices[name] = Price(schema, document, chosen(document, name))
        return prices[name]


class Charge(SchemaExtension):
    def __init__(self, charging: Charging) -> None:
        self._charging = charging

    def on_parse(self) -> Iterator[None]:
        context, bill = self.execution_context, admission.current()
        if context.graphql_document is not None:  # it is known: see server/documents.py
            yield
            return
        bill.document = len(context.query or "") // CHARACTERS
        yield
        # That there is one mypy does not know: the parser says so.
        document: DocumentNode | None = context.graphql_document
        if document is not None:
            bill.document = max(bill.document, document.token_count // TOKENS)

    async def on_execute(self) -> AsyncIterator[None]:
        await admission.current().pay(self._charging.points(self.execution_context))
        yield

    def get_results(self) -> dict[str, Any]:
        asked: Mapping[str, Any] = self.execution_context.operation_extensions or {}
        if asked.get(COST) is not True:
            return {}
        bill = admission.current()
        policy, verdict = bill.policy, bill.verdict
        return {
            COST: {
                "requested": bill.points,
                "remaining": verdict.remaining if verdict else None,
                "restoreRate": policy.points if policy else None,
            }
        }
