"""Long lists of ids that come as variables: taken past GraphQL's own look at each, which costs more than all else.

graphql-core walks over every element twice, in Python: of a hundred thousand ids that is a third of the time that their
change takes. GraphQL takes a single value for a list of one, so a list of strings goes through it as one.
"""

from collections.abc import Iterator
from typing import Any

from graphql import DocumentNode, NamedTypeNode, NonNullTypeNode, OperationDefinitionNode
from strawberry.extensions import SchemaExtension

from resolvers.values import IdList

# Inputs that have the field, and resolvers that unpack it.
INPUTS = frozenset({"AddUsersToSegmentInput", "RemoveUsersFromSegmentInput"})
FIELD = "userIds"
# Below that it is not worth the trouble.
LONG = 1_000


class LongLists(SchemaExtension):
    def on_execute(self) -> Iterator[None]:
        context = self.execution_context
        if context.variables and context.graphql_document is not None:
            context.variables = packed(context.graphql_document, context.variables)
        yield


def packed(document: DocumentNode, variables: dict[str, Any]) -> dict[str, Any]:
    """The variables, with long lists of strings in the place of ids each as one value."""
    names = {
        variable.variable.name.value
        for operation in document.definitions
        if isinstance(operation, OperationDefinitionNode)
        for variable in operation.variable_definitions or ()
        if isinstance(variable.type, NonNullTypeNode)
        and isinstance(variable.type.type, NamedTypeNode)
        and variable.type.type.name.value in INPUTS
    }
    return {name: _packed(value) if name in names else value for name, value in variables.items()}


def _packed(value: object) -> object:
    if not isinstance(value, dict):
        return value
    ids = value.get(FIELD)
    # What else there may be is for GraphQL to convert, or to refuse.
    if not isinstance(ids, list) or len(ids) < LONG or set(map(type, ids)) != {str}:
        return value
    return {**value, FIELD: IdList.of(ids)}
