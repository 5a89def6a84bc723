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
    ValidationContext,
    ValidationRule,
)
from strawberry.extensions import SchemaExtension

# Together, in characters of their texts; a parsed document takes some hundred times as many bytes.
CACHED_CHARACTERS = 200_000
# A longer text would push out many others.
LONGEST_CACHED = 10_000


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
        # One class for all requests: a rule made anew for each would be validated as a new one.
        self.rule = limits_rule(limits)
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
        # Comments count as well as tokens: both are work to read.
        limit = self._documents.limits.tokens
        context.parse_options.update({"max_lexical_tokens": limit, "max_comments": limit})  # type: ignore[misc]  # graphql-core takes more than Strawberry lists
        yield

    def on_validate(self) -> Iterator[None]:
        context = self.execution_context
        assert context.graphql_document is not None
        if self._known:
            context.pre_execution_errors = []
        context.validation_rules = (*context.validation_rules, self._documents.rule)
        if _is_ambiguous(context.graphql_document, context._provided_operation_name):  # noqa: SLF001  # the public property falls back to the first operation
            context.pre_execution_errors = [_ambiguous()]
        yield
        if not self._known and not context.pre_execution_errors and context.query:
            self._documents.keep(context.query, context.graphql_document)


def _is_ambiguous(document: DocumentNode, operation_name: str | None) -> bool:
    if operation_name is not None:
        return False
    return sum(isinstance(definition, OperationDefinitionNode) for definition in document.definitions) > 1


def _ambiguous() -> GraphQLError:
    return GraphQLError(
        "The document has several operations: operationName must say which one to run.",
        extensions={"code": "BAD_USER_INPUT"},
    )


class Size(NamedTuple):
    depth: int = 0
    aliases: int = 0
    # Of this level.
    fields: int = 0
    directives: int = 0


def limits_rule(limits: DocumentLimits) -> type[ValidationRule]:
    """A validation rule that refuses operations beyond the limits.

    Every fragment is measured once, however often it is spread: the work is linear in the document's length.
    """

    class OperationLimits(ValidationRule):
        def __init__(self, context: ValidationContext) -> None:
            super().__init__(context)
            definitions = context.document.definitions
            measure = measuring({d.name.value: d for d in definitions if isinstance(d, FragmentDefinitionNode)})
            for operation in definitions:
                if isinstance(operation, OperationDefinitionNode):
                    self._check(operation, measure(operation.selection_set))

        def _check(self, operation: OperationDefinitionNode, size: Size) -> None:
            for what, found, limit in (
                ("levels", size.depth, limits.depth),
                ("aliases", size.aliases, limits.aliases),
                ("root fields", size.fields, limits.root_fields),
                ("directives", size.directives + len(operation.directives or ()), limits.directives),
            ):
                if found > limit:
                    message = f"The operation has more than {limit} {what}."
                    self.report_error(GraphQLError(message, operation, extensions={"code": "LIMIT_EXCEEDED"}))

    return OperationLimits


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
                size = Size(inner.depth + 1, inner.aliases + (selection.alias is not None), 1, inner.directives)
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
