"""GraphQL's own rules for documents, with bounds on the work that a document made to take long can cause."""

from collections.abc import Hashable, Iterator
from importlib import import_module

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLSchema,
    InlineFragmentNode,
    ListValueNode,
    Node,
    NoSchemaIntrospectionCustomRule,
    ObjectValueNode,
    OperationDefinitionNode,
    OverlappingFieldsCanBeMergedRule,
    SelectionSetNode,
    ValueNode,
    VariableNode,
    specified_rules,
    validate,
)
from strawberry.schema.validation_rules.maybe_null import MaybeNullValidationRule
from strawberry.schema.validation_rules.one_of import OneOfInputValidationRule

# Who mends so many sees the next; each more is work, and so is the line and column of each.
MOST_ERRORS = 10
# Of a value in a message. graphql-core prints the whole of an object once for each of its fields that is wrong.
SHOWN_CHARACTERS = 200
# That of overlapping fields compares each with each: a document of a thousand equal fields takes it a second.
RULES = (
    *(rule for rule in specified_rules if rule is not OverlappingFieldsCanBeMergedRule),
    MaybeNullValidationRule,
    OneOfInputValidationRule,
)

Fragments = dict[str, FragmentDefinitionNode]


def mistakes(schema: GraphQLSchema, document: DocumentNode, *, discreet: bool) -> list[GraphQLError]:
    """What is wrong with a document; a discreet answer knows no introspection, and nothing that may have been meant."""
    rules = (*RULES, NoSchemaIntrospectionCustomRule) if discreet else RULES
    return validate(schema, document, rules, MOST_ERRORS, discreet) or list(conflicts(document))[:MOST_ERRORS]


def conflicts(document: DocumentNode) -> Iterator[GraphQLError]:
    """Fields under one name that are not the same field with the same arguments; the document has no other mistakes.

    No field of the schema has an interface or a union for its type, so what one name stands for at one place always is
    of one type, and each field needs to be compared with the first only. Selections that are merged are merged before
    they are compared, as they are when they are executed: the work is linear in what there is to execute.
    """
    fragments = fragments_of(document)
    for definition in document.definitions:
        if isinstance(definition, OperationDefinitionNode):
            yield from _conflicts([definition.selection_set], fragments)


def fragments_of(document: DocumentNode) -> Fragments:
    """The document's fragments, by their names."""
    return {d.name.value: d for d in document.definitions if isinstance(d, FragmentDefinitionNode)}


def _conflicts(selection_sets: list[SelectionSetNode], fragments: Fragments) -> Iterator[GraphQLError]:
    grouped: dict[str, list[FieldNode]] = {}
    for field in fields(selection_sets, fragments):
        grouped.setdefault((field.alias or field.name).value, []).append(field)
    for name, same in grouped.items():
        first, *others = same
        arguments = _arguments(first)
        for other in others:
            if other.name.value != first.name.value:
                why = f"'{first.name.value}' and '{other.name.value}' are different fields"
            elif _arguments(other) != arguments:
                why = "they have differing arguments"
            else:
                continue
            message = f"Fields '{name}' conflict because {why}. Use different aliases to fetch both."
            yield GraphQLError(message, [first, other])
            break
        else:
            if below := [field.selection_set for field in same if field.selection_set]:
                yield from _conflicts(below, fragments)


def fields(selection_sets: list[SelectionSetNode], fragments: Fragments) -> Iterator[FieldNode]:
    """The fields of one level, through fragments, each of which is looked into once."""
    spread: set[str] = set()
    unread = selection_sets[::-1]
    while unread:
        for selection in unread.pop().selections:
            if isinstance(selection, FieldNode):
                yield selection
            elif isinstance(selection, InlineFragmentNode):
                unread.append(selection.selection_set)
            elif isinstance(selection, FragmentSpreadNode) and selection.name.value not in spread:
                spread.add(selection.name.value)
                unread.append(fragments[selection.name.value].selection_set)


def _arguments(field: FieldNode) -> dict[str, Hashable]:
    return {argument.name.value: _value(argument.value) for argument in field.arguments or ()}


def _value(node: ValueNode) -> Hashable:
    if isinstance(node, ObjectValueNode):
        return frozenset((field.name.value, _value(field.value)) for field in node.fields)
    if isinstance(node, ListValueNode):
        return tuple(map(_value, node.values))
    if isinstance(node, VariableNode):
        return (node.kind, node.name.value)
    return (node.kind, getattr(node, "value", None))


def _shown(node: Node) -> str:
    """A value as it was written, so far as it is short."""
    assert node.loc is not None
    text = node.loc.source.body[node.loc.start : min(node.loc.end, node.loc.start + SHOWN_CHARACTERS)]
    return text if node.loc.end - node.loc.start <= SHOWN_CHARACTERS else f"{text}…"


# There is no other way to have a say in it, and a function of the same name hides the module.
import_module("graphql.utilities.validate_input_value").print_for_error = _shown  # type: ignore[attr-defined]
