"""Which fields a caller may ask for: what schema/api.py says of each, and nothing that it does not mention."""

from collections.abc import Iterator

from graphql import DocumentNode, GraphQLObjectType, GraphQLSchema, OperationDefinitionNode
from strawberry.extensions import SchemaExtension

from db.tables import Scope
from resolvers.context import Context
from resolvers.errors import Forbidden
from schema.fields import SCOPE
from server.validation import fields, fragments_of

# What every type has of itself: what a thing is called is no secret, what there is, is told to those who may read.
OF_ITSELF = {"__typename": Scope.READ, "__schema": Scope.READ, "__type": Scope.READ}


class Access(SchemaExtension):
    """Refuses an operation before any of it is executed, if a single one of its fields is not the caller's to ask for.

    What `@skip` and `@include` would leave out counts, too: it was asked for.
    """

    def on_execute(self) -> Iterator[None]:
        execution = self.execution_context
        document = execution.graphql_document
        assert document is not None
        context: Context = execution.context
        operation = chosen(document, execution._provided_operation_name)  # noqa: SLF001  # the property would not do: see server/documents.py
        schema: GraphQLSchema = execution.schema._schema  # noqa: SLF001  # the one way to graphql-core's schema
        for name, scope in needed(schema, document, operation):
            if scope is None:
                raise Forbidden(f"Field {name} is nobody's to ask for.")
            if not context.caller.may(scope):
                raise Forbidden(f"Field {name} needs the scope {scope}.")
        yield


def needed(
    schema: GraphQLSchema, document: DocumentNode, operation: OperationDefinitionNode
) -> Iterator[tuple[str, Scope | None]]:
    """The fields that an operation asks for, and what a caller needs to ask for each."""
    root = schema.get_root_type(operation.operation)
    assert root is not None
    for field in fields([operation.selection_set], fragments_of(document)):
        yield field.name.value, scope_of(root, field.name.value)


def chosen(document: DocumentNode, name: str | None) -> OperationDefinitionNode:
    """The operation that is run; that there is one the document's own checks have made sure of."""
    operations = (d for d in document.definitions if isinstance(d, OperationDefinitionNode))
    return next(each for each in operations if name is None or (each.name is not None and each.name.value == name))


def scope_of(root: GraphQLObjectType, name: str) -> Scope | None:
    """What a caller needs to ask for the field; None: nobody may."""
    if name in OF_ITSELF:
        return OF_ITSELF[name]
    declared = root.fields[name].extensions.get("strawberry-definition")
    scope: Scope | None = None if declared is None else declared.metadata.get(SCOPE)
    return scope
