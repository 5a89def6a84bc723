"""Which documents are executed: parsed and validated once, and none that asks for too much."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
)
from strawberry.extensions import SchemaExtension

# Together, in characters of their texts. Parsed, each takes 45 to 90 bytes in documents that people write and up to 205
# in those made to take much: 25 MB at the very most.
CACHED_CHARACTERS = 120_000
# A longer text would push out many others.
LONGEST_CACHED = 10_000
# On average, of the longest document that is read at all. Every error counts its line and column from the beginning,
# so without a limit a hundred mistakes in a megabyte would keep the process busy for seconds.
CHARACTERS_PER_TOKEN = 50


@dataclass(frozen=True, slots=True)
class DocumentLimits:
    tokens: int
    depth: int
    aliases: int
    # Fields of an operation's first level.
    root_fields: int
    directives: int


class Documents:
    """Documents that were found valid, by their text, the least recently used ones forgotten first."""

    def __init__(self, limits: DocumentLimits) -> None:
        self.limits = limits
        self._valid: OrderedDict[str, DocumentNode] = OrderedDict()
        self._characters = 0

    def extension(self) -> SchemaExtension:
        return DocumentExtension(self)

    def find(self, text: str) -> DocumentNode | None:
        document = self._valid.get(text)
        if document is not None:
            self._valid.move_to_end(text)
        return document

    def keep(self, text: str, document: DocumentNode) -> None:
        """Keep a valid document. Invalid ones are never kept: they would be an attacker's choice."""
        if len(text) > LONGEST_CACHED or text in self._valid:
            return
        self._valid[text] = document
        self._characters += len(text)
        while self._characters > CACHED_CHARACTERS:
            oldest, _ = self._valid.popitem(last=False)
            self._characters -= len(oldest)


class DocumentExtension(SchemaExtension):
    """Puts the documents at Strawberry's disposal."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents
        self._known = False

    def on_parse(self) -> Iterator[None]:
        context = self.execution_context
        if context.query:
            context.graphql_document = self._documents.find(context.query)
            self._known = context.graphql_document is not None
        limit = self._documents.limits.tokens
        context.parse_options.update(
            {  # type: ignore[misc]  # graphql-core takes more than Strawberry lists
                "max_lexical_tokens": limit,
                "max_comments": limit,  # they are work to read, too
                "max_source_length": limit * CHARACTERS_PER_TOKEN,
            }
        )
        yield
        if context.graphql_document is not None:
            # The public property falls back to the first operation.
            require_operation(context.graphql_document, context._provided_operation_name)  # noqa: SLF001  # see above

    def on_validate(self) -> Iterator[None]:
        context = self.execution_context
        assert context.graphql_document is not None
        # Errors, and even that there are none, are the end of the matter for Strawberry; None lets it validate.
        context.pre_execution_errors = (
            [] if self._known else excesses(context.graphql_document, self._documents.limits) or None
        )
        yield
        if not self._known and not context.pre_execution_errors and context.query:
            self._documents.keep(context.query, context.graphql_document)


def require_operation(document: DocumentNode, name: str | None) -> None:
    """Refuse a request that does not say which operation to run, before Strawberry runs the first one."""
    operations = [d for d in document.definitions if isinstance(d, OperationDefinitionNode)]
    if name is not None:
        if any(operation.name is not None and operation.name.value == name for operation in operations):
            return
        message = f"The document has no operation named {name}."
    elif len(operations) == 1:
        return
    elif operations:
        message = "The document has several operations: operationName must say which one to run."
    else:
        message = "The document has no operation."
    raise GraphQLError(message, extensions={"code": "BAD_USER_INPUT"})


class Size(NamedTuple):
    depth: int = 0
    aliases: int = 0
    # Of this level.
    fields: int = 0
    directives: int = 0


def excesses(document: DocumentNode, limits: DocumentLimits) -> list[GraphQLError]:
    """Where a document's operations go beyond the limits.

    Every fragment is measured once, however often it is spread: the work is linear in the document's length. So this
    comes first, and what GraphQL's own rules have to compare is within the limits.
    """
    definitions = document.definitions
    operations = [d for d in definitions if isinstance(d, OperationDefinitionNode)]
    measure = measuring({d.name.value: d for d in definitions if isinstance(d, FragmentDefinitionNode)})
    try:
        sizes = [measure(operation.selection_set) for operation in operations]
    except RecursionError:  # only where far more tokens are allowed than by default
        return [_too_large(None, limits.depth, "levels")]
    return [
        _too_large(operation, limit, what)
        for operation, size in zip(operations, sizes, strict=True)
        for what, found, limit in (
            ("levels", size.depth, limits.depth),
            ("aliases", size.aliases, limits.aliases),
            ("root fields", size.fields, limits.root_fields),
            ("directives", size.directives + len(operation.directives or ()), limits.directives),
        )
        if found > limit
    ]


def _too_large(operation: OperationDefinitionNode | None, limit: int, what: str) -> GraphQLError:
    message = f"The operation has more than {limit} {what}."
    return GraphQLError(message, operation, extensions={"code": "LIMIT_EXCEEDED"})


def measuring(fragments: dict[str, FragmentDefinitionNode]) -> Callable[[SelectionSetNode | None], Size]:
    measured: dict[str, Size] = {}

    def fragment(name: str) -> Size:
        if name not in measured:
            measured[name] = Size()  # ends cycles; those, and unknown names, are refused by GraphQL's own rules
            if name in fragments:
                measured[name] = selections(fragments[name].selection_set)
        return measured[name]

    def selections(selection_set: SelectionSetNode | None) -> Size:
        total = Size()
        for selection in selection_set.selections if selection_set else ():
            size = Size()
            if isinstance(selection, FieldNode):
                inner = selections(selection.selection_set)
                # How deep introspection may go GraphQL's own rules decide: tools ask for fifteen levels.
                depth = 0 if selection.name.value.startswith("__") else inner.depth
                size = Size(depth + 1, inner.aliases + (selection.alias is not None), 1, inner.directives)
            elif isinstance(selection, FragmentSpreadNode):
                size = fragment(selection.name.value)
            elif isinstance(selection, InlineFragmentNode):
                size = selections(selection.selection_set)
            total = Size(
                max(total.depth, size.depth),
                total.aliases + size.aliases,
                total.fields + size.fields,
                total.directives + size.directives + len(selection.directives or ()),
            )
        return total

    return selections
