"""Operations that were seen before: each is compiled once, and then answered without graphql-core.

An answer can be given up at any moment. Whoever is told that has graphql-core answer from the start: what a caller is
told of an error is always what graphql-core says. A query has no effects; what came of a mutation is kept for then.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from graphql import (
    DirectiveNode,
    DocumentNode,
    GraphQLError,
    GraphQLSchema,
    OperationDefinitionNode,
    VariableNode,
    Visitor,
    visit,
)
from strawberry.schema.base import BaseSchema

from resolvers.callers import SCOPES, rank
from schema.costs import Price
from server import metrics
from server.access import chosen, needed
from server.compiled_arguments import Variables
from server.compiled_values import SurpriseError
from server.compiling import Answer, compiled
from server.documents import Documents, require_operation
from server.observation import hash_of, name_of
from server.validation import fragments_of

# Of one operation, as many as its directives' variables have had different values.
MOST_VARIANTS = 8
# What the first level's fields are read from: nothing that anybody looks at.
ROOT = object()
# More than any caller's scope.
NOBODY = len(SCOPES)


class Plan:
    """What is known of an operation: what it is called, costs and needs, and the code that answers it."""

    def __init__(
        self, built: BaseSchema, document: DocumentNode, operation: OperationDefinitionNode, text: str
    ) -> None:
        schema: GraphQLSchema = built._schema  # type: ignore[attr-defined]  # noqa: SLF001  # the one way to graphql-core's schema
        self._built = built
        self._operation = operation
        self._fragments = fragments_of(document)
        self._conditions = tuple(dict.fromkeys(_conditions(document)))
        self._variants: dict[tuple[Any, ...], tuple[Answer, bool] | None] = {}
        self.variables = Variables(schema, operation)
        self.price = Price(schema, document, operation)
        self.hash = hash_of(text)
        self.name = name_of(operation)
        self.kind = operation.operation.value
        self.counted = metrics.counted(self.name, self.kind)
        fields = list(needed(schema, document, operation))
        self.field_name = fields[0][0] if fields else ""
        # What a caller's scope has to rank.
        self.rank = max((NOBODY if scope is None else rank(scope) for _, scope in fields), default=0)

    def answer(self, coerced: Mapping[str, Any]) -> tuple[Answer, bool]:
        """The code for these variables, and whether users' memberships are all that it waits for.

        Raises SurpriseError when there is none.
        """
        values = tuple([coerced.get(name) for name in self._conditions]) if self._conditions else ()
        found = self._variants.get(values)
        if found is None:
            if values in self._variants or len(self._variants) >= MOST_VARIANTS:
                raise SurpriseError
            self._variants[values] = None  # whatever stops it now would stop it again
            found = compiled(self._built, self._fragments, self._operation, self.variables, coerced)
            self._variants[values] = found
        return found


class Plans:
    """The plans of the documents that are kept, made when a document is seen for the second time."""

    def __init__(self, schema: BaseSchema, documents: Documents) -> None:
        self._schema = schema
        self._documents = documents

    def find(self, text: str, name: str | None) -> Plan | None:
        """The plan of a document's operation; None where graphql-core has to answer."""
        known = self._documents.find(text)
        if known is None:
            return None
        if name not in known.plans:
            try:
                require_operation(known.document, name)
            except GraphQLError:
                return None
            known.plans[name] = self._plan(known.document, name, text)
        plan: Plan | None = known.plans[name]
        return plan

    def _plan(self, document: DocumentNode, name: str | None, text: str) -> Plan | None:
        try:
            return Plan(self._schema, document, chosen(document, name), text)
        except (SurpriseError, RecursionError):  # the latter only where far more levels are allowed than by default
            return None


def _conditions(document: DocumentNode) -> Iterator[str]:
    """The variables that the document's directives depend on."""
    found: list[str] = []

    class Directives(Visitor):
        def enter_directive(self, node: DirectiveNode, *_: Any) -> None:
            values = (argument.value for argument in node.arguments or ())
            found.extend(value.name.value for value in values if isinstance(value, VariableNode))

    visit(document, Directives())
    return iter(found)
