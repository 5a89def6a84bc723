"""Which documents are executed: parsed and validated once, and none that asks for too much."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentSpreadNode,
    GraphQLError,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
)
from strawberry.extensions import SchemaExtension

from server import validation

# Together, in characters of their texts. Parsed, each takes 45 to 90 bytes in documents that people write and up to 205
# in those made to take much: 25 MB at the very most.
CACHED_CHARACTERS = 120_000
# A longer text would push out many others.
LONGEST_CACHED = 10_000
# On average, of the longest document that is read at all. Every error counts its line and column from the beginning,
# so without a limit a hundred mistakes in a megabyte would keep the process busy for seconds.
CHARACTERS_PER_TOKEN = 50
# Likewise: people write several tokens into a line, and comments have lines of their own.
LINES_PER_TOKEN = 2
# What an operation selects, its fragments unfolded: so many for each token that the document may have. Without
# fragments a document that selects more has one field many times.
SELECTIONS_PER_TOKEN = 0.5
# Of an operation: `__schema`, `__type`, and what an alias repeats of them. Tools ask once, and each costs as much as
# hundreds of reads.
INTROSPECTIONS = 2
# Operations and fragments of a document. GraphQL's own rules look at each as often as it is used.
DEFINITIONS = 100


@dataclass(frozen=True, slots=True)
class DocumentLimits:
    tokens: int
    depth: int
    aliases: int
    # Fields of an operation's first level.
    root_fields: int
    directives: int

    @property
    def selections(self) -> int:
        return int(self.tokens * SELECTIONS_PER_TOKEN)


@dataclass(frozen=True, slots=True)
class Known:
    document: DocumentNode
    # What was made of its operations, by their names, for as long as the document is kept (server/plans.py).
    plans: dict[str | None, Any] = field(default_factory=dict)


class Documents:
    """Documents that were found valid, by their text, the least recently used ones forgotten first."""

    def __init__(self, limits: DocumentLimits, *, discreet: bool = False) -> None:
        self.limits = limits
        # Whether the schema is not for callers to see.
        self.discreet = discreet
        self._valid: OrderedDict[str, Known] = OrderedDict()
        self._characters = 0
        # Those that are never forgotten (server/trusted.py).
        self._pinned: dict[str, Known] = {}

    def extension(self) -> SchemaExtension:
        return DocumentExtension(self)

    def find(self, text: str) -> Known | None:
        known = self._valid.get(text)
        if known is None:
            return self._pinned.get(text)
        self._valid.move_to_end(text)
        return known

    def pin(self, text: str, document: DocumentNode) -> None:
        """Keep a valid document for good: the operator's choice, and not a caller's."""
        self._pinned[text] = Known(document)

    def keep(self, text: str, document: DocumentNode) -> None:
        """Keep a valid document. Invalid ones are never kept: they would be an attacker's choice."""
        if len(text) > LONGEST_CACHED or text in self._valid:
            return
        self._valid[text] = Known(document)
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
            known = self._documents.find(context.query)
            context.graphql_document = None if known is None else known.document
            self._known = known is not None
        limit = self._documents.limits.tokens
        if context.query and not self._known:
            require_size(context.query, limit)
        context.parse_options.update(
            {  # type: ignore[misc]  # graphql-core takes more than Strawberry lists
                "max_lexical_tokens": limit,
                "max_comments": limit,  # they are work to read, too
            }
        )
        yield
        if context.graphql_document is not None:
            # The public property falls back to the first operation.
            require_operation(context.graphql_document, context._provided_operation_name)  # noqa: SLF001  # see above

    def on_validate(self) -> Iterator[None]:
        context = self.execution_context
        document = context.graphql_document
        assert document is not None
        # Errors, and even that there are none, are the end of the matter for Strawberry.
        context.pre_execution_errors = [] if self._known else self._mistakes(document)
        yield
        if not self._known and not context.pre_execution_errors and context.query:
            self._documents.keep(context.query, document)

    def _mistakes(self, document: DocumentNode) -> list[GraphQLError]:
        # What is too large is not looked at any closer.
        if too_large := excesses(document, self._documents.limits):
            return too_large
        schema = self.execution_context.schema._schema  # noqa: SLF001  # the one way to graphql-core's schema
        return validation.mistakes(schema, document, discreet=self._documents.discreet)


def require_size(text: str, tokens: int) -> None:
    """Refuse a text that is longer than documents of so many tokens are, before anything reads it."""
    for size, limit, what in (
        (len(text), tokens * CHARACTERS_PER_TOKEN, "characters"),
        (text.count("\n") + text.count("\r"), tokens * LINES_PER_TOKEN, "line ends"),
    ):
        if size > limit:
            message = f"The document has more than {limit} {what}."
            raise GraphQLError(message, extensions={"code": "LIMIT_EXCEEDED"})


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
    selections: int = 0
    introspections: int = 0


def excesses(document: DocumentNode, limits: DocumentLimits) -> list[GraphQLError]:
    """Where a document's operations go beyond the limits.

    Every fragment is measured once, however often it is spread: the work is linear in the document's length. So this
    comes first, and what GraphQL's own rules have to compare is within the limits.
    """
    definitions = document.definitions
    if len(definitions) > DEFINITIONS:
        message = f"The document has more than {DEFINITIONS} operations and fragments."
        return [GraphQLError(message, extensions={"code": "LIMIT_EXCEEDED"})]
    operations = [d for d in definitions if isinstance(d, OperationDefinitionNode)]
    measure = measuring(validation.fragments_of(document))
    try:
        sizes = [measure(operation.selection_set) for operation in operations]
    except RecursionError:  # only where far more tokens are allowed than by default
        return [_too_large(None, limits.depth, "levels")]
    found = (
        _too_large(operation, limit, what)
        for operation, of in zip(operations, sizes, strict=True)
        for what, size, limit in (
            ("levels", of.depth, limits.depth),
            ("aliases", of.aliases, limits.aliases),
            ("root fields", of.fields, limits.root_fields),
            ("directives", of.directives + len(operation.directives or ()), limits.directives),
            ("selections", of.selections, limits.selections),
            ("introspections", of.introspections, INTROSPECTIONS),
        )
        if size > limit
    )
    return list(islice(found, validation.MOST_ERRORS))


def _too_large(operation: OperationDefinitionNode | None, limit: int, what: str) -> GraphQLError:
    message = f"The operation has more than {limit} {what}."
    return GraphQLError(message, operation, extensions={"code": "LIMIT_EXCEEDED"})


def measuring(fragments: validation.Fragments) -> Callable[[SelectionSetNode | None], Size]:
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
                aliases = inner.aliases + (selection.alias is not None)
                # How deep introspection may go GraphQL's own rules decide: tools ask for fifteen levels.
                introspects = selection.name.value in ("__schema", "__type")
                size = Size(
                    1 if introspects else inner.depth + 1,
                    aliases,
                    1,
                    inner.directives,
                    inner.selections,
                    inner.introspections + introspects * (1 + inner.aliases),
                )
            elif isinstance(selection, FragmentSpreadNode):
                size = fragment(selection.name.value)
            elif isinstance(selection, InlineFragmentNode):
                size = selections(selection.selection_set)
            total = Size(
                max(total.depth, size.depth),
                total.aliases + size.aliases,
                total.fields + size.fields,
                total.directives + size.directives + len(selection.directives or ()),
                total.selections + size.selections + 1,
                total.introspections + size.introspections,
            )
        return total

    return selections
