"""What a GraphQL operation is called, noted for the log, the metrics and the traces."""

import hashlib
from collections.abc import Iterator

from graphql import OperationDefinitionNode
from strawberry.extensions import SchemaExtension

from resolvers import facts
from server.access import chosen

# What a caller calls its operation may be of any length.
NAME_CHARACTERS = 64
# Of the hash: enough to tell documents apart, and to find one in a repository by hashing its texts.
HASH_CHARACTERS = 12


class Observation(SchemaExtension):
    def on_operation(self) -> Iterator[None]:
        context, noted = self.execution_context, facts.current()
        noted.document = hash_of(context.query or "")
        yield

    def on_validate(self) -> Iterator[None]:
        yield
        context, noted = self.execution_context, facts.current()
        if context.pre_execution_errors or context.graphql_document is None:
            return
        asked = context._provided_operation_name  # noqa: SLF001  # the public property falls back to the first one
        operation = chosen(context.graphql_document, asked)
        noted.operation = name_of(operation)
        noted.kind = operation.operation.value


def hash_of(text: str) -> str:
    """What a document is called in the log."""
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_CHARACTERS]


def name_of(operation: OperationDefinitionNode) -> str | None:
    return operation.name.value[:NAME_CHARACTERS] if operation.name else None
