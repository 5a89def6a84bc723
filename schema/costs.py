"""What an operation costs, in points, as it can be seen before it is executed.

Each operation costs a point. What its fields cost besides is declared beside them (schema/api.py, schema/types.py), in
units, so that parts of points add up; what is left of a point in the end is free.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLField,
    GraphQLObjectType,
    GraphQLSchema,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionNode,
    SelectionSetNode,
    get_named_type,
)

from schema.sizes import Measure, Sized, included, size, size_of

# Under which a field keeps its cost.
COST = "cost"
# A point in units.
POINT = 10_000
# So many of a kind make a point: items of lists, rows of a bulk change, members that are counted.
ITEMS, ROWS, COUNTED = 50, 1_000, 10_000
# What the database is asked for by itself: a statement, or a mutation's transaction.
STATEMENT = POINT
# It takes as long as a hundred reads.
INTROSPECTION = 50
# No `first` and no `limit` may be more, whatever the settings.
LARGEST_PAGE, LARGEST_COUNT = 10_000, 1_000_000


@dataclass(frozen=True, slots=True)
class Cost:
    """What a field costs by itself, and by the sizes of its arguments together."""

    units: int = 0
    measures: tuple[Measure, ...] = ()
    units_each: int = 0
    # The size when nothing was given.
    otherwise: int = 0
    # Whether what is selected below is paid for so many times.
    multiplies: bool = False
    # Of arguments that take a statement where they are given.
    asking: tuple[Measure, ...] = ()


def page(argument: str) -> Cost:
    """A list of as many items as the argument says."""
    return Cost(STATEMENT, (Measure(argument, most=LARGEST_PAGE),), POINT // ITEMS, multiplies=True)


def listing(argument: str, otherwise: int = 0, *, asking: str | None = None) -> Cost:
    """A list of as many items as the argument, a list, has; where `asking` is given, found by a statement."""
    asked = () if asking is None else (Measure(asking),)
    return Cost(0, (Measure(argument),), POINT // ITEMS, otherwise, multiplies=True, asking=asked)


def writing(*lists: str) -> Cost:
    """A change of as many rows as these lists of an argument have items; `input.userIds` is one in an input."""
    paths = [tuple(each.split(".")) for each in lists]
    return Cost(STATEMENT, tuple(Measure(path[0], path[1:]) for path in paths), POINT // ROWS)


def counting(argument: str) -> Cost:
    """A count up to that number."""
    return Cost(STATEMENT, (Measure(argument, most=LARGEST_COUNT),), POINT // COUNTED)


def one_item() -> Cost:
    """As much as an item of a list."""
    return Cost(POINT // ITEMS)


def one_statement() -> Cost:
    """A statement, or a transaction, that nothing makes longer."""
    return Cost(STATEMENT)


def of_points(points: int) -> Cost:
    """So many points, all in."""
    return Cost(points * POINT)


@dataclass(slots=True)
class Asked:
    """One request's variables, and what the fragments cost with them."""

    variables: Mapping[str, Any]
    fragments: dict[str, int] = field(default_factory=dict)


Known = TypeVar("Known")
# Known from the document, or only with the variables.
Units = int | Callable[[Asked], int]


class Price:
    """What an operation of a valid document costs, whatever the variables are."""

    def __init__(self, schema: GraphQLSchema, document: DocumentNode, operation: OperationDefinitionNode) -> None:
        self._schema = schema
        self._definitions = {d.name.value: d for d in document.definitions if isinstance(d, FragmentDefinitionNode)}
        self._defaults = {
            variable.variable.name.value: variable.default_value
            for variable in operation.variable_definitions or ()
            if variable.default_value is not None
        }
        # Each fragment is looked at once, however often it is spread: the work is linear in the document's length.
        self._fragments: dict[str, Units] = {}
        self._units = self._selections(schema.get_root_type(operation.operation), operation.selection_set)

    def points(self, variables: Mapping[str, Any] | None) -> int:
        """What is wrong with the variables is for GraphQL to refuse, and hardly costs anything."""
        units = self._units
        if not isinstance(units, int):
            units = units(Asked({**self._defaults, **(variables or {})} if self._defaults else variables or {}))
        return 1 + units // POINT

    def _selections(self, type_: GraphQLObjectType | None, selection_set: SelectionSetNode | None) -> Units:
        return _sum(self._selection(type_, each) for each in (selection_set.selections if selection_set else ()))

    def _selection(self, type_: GraphQLObjectType | None, node: SelectionNode) -> Units:
        if isinstance(node, FieldNode):
            units = self._field(type_, node)
        elif isinstance(node, FragmentSpreadNode):
            units = self._fragment(node.name.value)
        else:
            assert isinstance(node, InlineFragmentNode)
            condition = node.type_condition
            inner = self._type(condition.name.value) if condition else type_
            units = self._selections(inner, node.selection_set)
        if node.directives:
            return lambda asked: _value(units, asked) if included(node, asked.variables) else 0
        return units

    def _fragment(self, name: str) -> Units:
        """Also of each request a fragment is looked at once."""
        if name not in self._fragments:
            definition = self._definitions[name]
            self._fragments[name] = self._selections(
                self._type(definition.type_condition.name.value), definition.selection_set
            )
        units = self._fragments[name]
        if isinstance(units, int):
            return units

        def once(asked: Asked) -> int:
            if name not in asked.fragments:
                asked.fragments[name] = _value(units, asked)
            return asked.fragments[name]

        return once

    def _field(self, type_: GraphQLObjectType | None, node: FieldNode) -> Units:
        definition = type_.fields.get(node.name.value) if type_ else None
        if definition is None:
            return 0 if node.name.value == "__typename" else INTROSPECTION * POINT
        named = get_named_type(definition.type)
        inner = self._selections(named if isinstance(named, GraphQLObjectType) else None, node.selection_set)
        cost = _declared(definition)
        if cost is None:
            return inner
        items = _sized(cost.measures, cost.otherwise, definition, node)
        statements = _sized(cost.asking, 0, definition, node)
        if isinstance(inner, int) and isinstance(statements, int):
            # Nearly always at most the sizes of lists are known with the variables alone.
            alone = _units(cost, 0, statements, inner)
            each = _units(cost, 1, statements, inner) - alone
            return alone + each * items if isinstance(items, int) else _multiplied(alone, each, items)
        return lambda asked: _units(cost, _number(items, asked), _number(statements, asked), _value(inner, asked))

    def _type(self, name: str) -> GraphQLObjectType | None:
        type_ = self._schema.get_type(name)
        return type_ if isinstance(type_, GraphQLObjectType) else None


def _declared(definition: GraphQLField) -> Cost | None:
    field = definition.extensions.get("strawberry-definition")
    cost = field.metadata.get(COST) if field is not None else None
    return cost if isinstance(cost, Cost) else None


def _sized(measures: Iterable[Measure], otherwise: int, definition: GraphQLField, node: FieldNode) -> Sized:
    """The sizes of a field's arguments together, as far as it is known without variables."""
    given = {argument.name.value: argument.value for argument in node.arguments or ()}

    def one(measure: Measure) -> Sized:
        argument = definition.args.get(measure.argument)
        default = size_of(measure, argument.default_value) if argument else None
        return size(measure, given.get(measure.argument), otherwise if default is None else default)

    return _sum(map(one, measures))


def _units(cost: Cost, items: int, statements: int, inner: int) -> int:
    own = cost.units + statements * STATEMENT + items * cost.units_each
    return own + inner * (items if cost.multiplies else 1)


def _multiplied(alone: int, each: int, items: Callable[[Mapping[str, Any]], int]) -> Units:
    return lambda asked: alone + each * items(asked.variables)


def _number(sized: Sized, asked: Asked) -> int:
    return sized if isinstance(sized, int) else sized(asked.variables)


def _value(units: Units, asked: Asked) -> int:
    return units if isinstance(units, int) else units(asked)


def _sum(parts: Iterable[int | Callable[[Known], int]]) -> int | Callable[[Known], int]:
    """Added up as far as they are numbers already, and all of them as soon as what the others need is known."""
    constant = 0
    others: list[Callable[[Known], int]] = []
    for part in parts:
        if isinstance(part, int):
            constant += part
        else:
            others.append(part)
    if not others:
        return constant
    if len(others) == 1:
        only = others[0]
        return lambda known: constant + only(known)
    return lambda known: constant + sum([other(known) for other in others])
