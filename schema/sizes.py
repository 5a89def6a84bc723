"""How large an argument is, as it stands in a document or comes in a variable: a number, or the length of a list.

Nothing here raises. What is odd is counted as one where GraphQL, or the resolver, is sure to refuse it, and otherwise
as much as it may be.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphql import (
    BooleanValueNode,
    FloatValueNode,
    IntValueNode,
    ListValueNode,
    NullValueNode,
    ObjectValueNode,
    SelectionNode,
    Undefined,
    ValueNode,
    VariableNode,
)

Variables = Mapping[str, Any]
# Known from the document, or only with the variables.
Sized = int | Callable[[Variables], int]
# Of a number that may be written out: no more is needed, and Python does not read numbers of any length.
DIGITS = 100
ODD = 1


@dataclass(frozen=True, slots=True)
class Measure:
    """What is looked at: from a field's argument down, through inputs and the elements of lists."""

    argument: str
    path: tuple[str, ...] = ()
    # Of a number, from where on it is refused anyway; None: it is a list.
    most: int | None = None


def size(measure: Measure, node: ValueNode | None, absent: int) -> Sized:
    """The size of what was written for the argument; `absent` when there is nothing."""
    if node is None:
        return absent
    if isinstance(node, VariableNode) and measure.most is None:
        return _length(measure, node, absent)
    if _has_variables(node):
        return lambda variables: _or(_size(measure, measure.path, node, variables), absent)
    return _or(_size(measure, measure.path, node, {}), absent)


def included(node: SelectionNode, variables: Variables) -> bool:
    """What `@skip` and `@include` say."""
    for directive in node.directives or ():
        unwanted = {"include": False, "skip": True}.get(directive.name.value)
        for argument in directive.arguments or ():
            value: object = argument.value
            if isinstance(value, VariableNode):
                value = variables.get(value.name.value)
            if isinstance(value, BooleanValueNode):
                value = value.value
            if unwanted is not None and value is unwanted:
                return False
    return True


def size_of(measure: Measure, value: object) -> int | None:
    """The same of a value; None when there is none."""
    return _size(measure, measure.path, value, {})


def _length(measure: Measure, node: VariableNode, absent: int) -> Sized:
    """Of a variable's list, or one in its objects: nearly always it is simply there."""
    variable, path = node.name.value, measure.path

    def looked_at(variables: Variables) -> int:
        return _or(_size(measure, path, node, variables), absent)

    def itself(variables: Variables) -> int:
        given = variables.get(variable)
        return len(given) if type(given) is list else looked_at(variables)

    def within(variables: Variables) -> int:
        given = variables.get(variable)
        if type(given) is not dict:
            return looked_at(variables)
        found = given.get(path[0])
        if found is None:
            return absent
        return len(found) if type(found) is list else looked_at(variables)

    return (itself, within, looked_at)[min(len(path), 2)]


def _size(measure: Measure, path: Sequence[str], given: object, variables: Variables) -> int | None:
    """Of a value, or of what stands for one in a document: a variable's default does, too."""
    if isinstance(given, VariableNode):
        given = variables.get(given.name.value)
    if given is None or given is Undefined or isinstance(given, NullValueNode):
        return None
    elements = given.values if isinstance(given, ListValueNode) else given
    if isinstance(elements, list | tuple):
        if not path:
            return len(elements)
        return sum(_or(_size(measure, path[1:], _part(each, path[0], variables), variables), 0) for each in elements)
    if path:
        return _size(measure, path[1:], _part(given, path[0], variables), variables)
    return ODD if measure.most is None else _number(given, measure.most)


def _part(given: object, name: str, variables: Variables) -> object:
    if isinstance(given, VariableNode):
        given = variables.get(given.name.value)
    if isinstance(given, ObjectValueNode):
        return next((field.value for field in given.fields if field.name.value == name), None)
    return given.get(name) if isinstance(given, dict) else None


def _number(given: object, most: int) -> int:
    """No argument takes a text, or anything else, for a number; one that is too large, or negative, is refused."""
    if isinstance(given, IntValueNode | FloatValueNode):
        if len(given.value) > DIGITS:
            return most
        # A whole number may be written with a point or an exponent; what is not whole is refused.
        given = float(given.value)
    return int(given) if isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given <= most else ODD


def _has_variables(node: ValueNode) -> bool:
    if isinstance(node, ListValueNode):
        return any(_has_variables(each) for each in node.values)
    if isinstance(node, ObjectValueNode):
        return any(_has_variables(field.value) for field in node.fields)
    return isinstance(node, VariableNode)


def _or(found: int | None, absent: int) -> int:
    return absent if found is None else found
