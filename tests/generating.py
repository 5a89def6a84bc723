"""Queries that anybody might send, right and wrong ones: the schema decides what there is, chance what is asked for."""

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from generated_values import Name, Values, literal
from graphql import (
    GraphQLArgument,
    GraphQLField,
    GraphQLInputType,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLSchema,
    Undefined,
    get_named_type,
    is_required_argument,
)

# Each asks PostgreSQL; one below the other they are no more than so many.
ASKING = frozenset({"members", "memberCount", "history", "segments", "tasks"})
MOST_ASKING = 2
MOST_ALIASES = 15
INTROSPECTION = ("__schema { queryType { name } }", '__type(name: "User") { name fields { name } }')


@dataclass(frozen=True)
class Case:
    """What is posted."""

    body: bytes
    accept: str | None


@dataclass
class Variable:
    declared: str
    # Whether it has to be there.
    needed: bool
    # Of which argument, or None of a directive.
    argument: tuple[str, str, GraphQLInputType] | None


@dataclass
class Document:
    text: str
    variables: dict[str, Variable]
    operations: list[str | None]


@dataclass
class Fragment:
    type: str
    text: str
    uses: set[str]


@dataclass
class Writer:
    """Writes one document."""

    schema: GraphQLSchema
    values: Values
    random: random.Random
    left: int
    variables: dict[str, Variable] = field(default_factory=dict)
    fragments: dict[str, Fragment] = field(default_factory=dict)
    aliases: int = 0
    # Of fields without alias: everywhere the same arguments, for what is merged has to agree.
    plain: dict[tuple[str, str], tuple[str, set[str]]] = field(default_factory=dict)
    # The variables of what is being written.
    used: set[str] = field(default_factory=set)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def document(self) -> Document:
        operations: list[tuple[str | None, str]] = []
        for number in range(self.random.choice((1, 1, 1, 1, 2, 3))):
            self.used = set()
            assert self.schema.query_type is not None
            selected = self._selections(self.schema.query_type, self.random.choice((2, 3, 4, 5, 7, 10)), 0)
            name = f"Q{number}"
            declared = ", ".join(self.variables[used].declared for used in sorted(self.used))
            head = f"query {name} ({declared})" if declared else f"query {name}"
            operations.append((name, f"{head} {selected}"))
        if len(operations) == 1 and self.random.random() < 0.3:
            text = operations[0][1]
            operations = [(None, text.replace("query Q0 ", "query " if "$" in text else "", 1))]
        parts = [text for _, text in operations]
        parts += [f"fragment {name} on {each.type} {each.text}" for name, each in self.fragments.items()]
        if self.random.random() < 0.3:
            self.random.shuffle(parts)
        text = self.random.choice((" ", "\n", "\n\n")).join(parts)
        return Document(spoiled(text, self.random), self.variables, [name for name, _ in operations])

    def _selections(self, type_: GraphQLObjectType, levels: int, asking: int) -> str:
        written = [self._selection(type_, levels, asking) for _ in range(self.random.choice((1, 1, 2, 2, 3, 4, 6)))]
        return f"{{ {' '.join(written)} }}"

    def _selection(self, type_: GraphQLObjectType, levels: int, asking: int) -> str:
        chance = self.random.random()
        if chance < 0.05:
            return f"{self._alias()}__typename{self._directives()}"
        if chance < 0.13 and self.left > 0:
            on = self.random.choice((f" on {type_.name}", f" on {type_.name}", ""))
            return f"...{on}{self._directives()} {self._selections(type_, levels, asking)}"
        if chance < 0.21 and self.left > 0:
            return self._spread(type_, levels, asking)
        if 0.21 < chance < 0.22 and type_ is self.schema.query_type:
            return self.random.choice(INTROSPECTION)
        return self._field(type_, levels, asking)

    def _spread(self, type_: GraphQLObjectType, levels: int, asking: int) -> str:
        known = [name for name, each in self.fragments.items() if each.type == type_.name]
        if known and self.random.random() < 0.5:
            name = self.random.choice(known)
        else:
            outside, self.used = self.used, set()
            text = self._selections(type_, levels, asking)
            name = f"F{next(self.numbers)}"
            self.fragments[name] = Fragment(type_.name, text, self.used)
            self.used = outside
        self.used |= self.fragments[name].uses
        return f"...{name}{self._directives()}"

    def _field(self, type_: GraphQLObjectType, levels: int, asking: int) -> str:
        self.left -= 1
        name, definition = self._chosen(type_, levels, asking)
        inner = get_named_type(definition.type)
        alias = self._alias(name)
        if alias:
            arguments = self._arguments(name, definition)
        else:
            arguments, uses = self.plain.get((type_.name, name), ("", set[str]()))
            if (type_.name, name) not in self.plain:
                outside, self.used = self.used, set()
                arguments, uses = self._arguments(name, definition), self.used
                self.plain[type_.name, name] = arguments, uses
                self.used = outside
            self.used |= uses
        written = f"{alias}{name}{arguments}{self._directives()}"
        if isinstance(inner, GraphQLObjectType):
            written += f" {self._selections(inner, levels - 1, asking + (name in ASKING))}"
        return written

    def _chosen(self, type_: GraphQLObjectType, levels: int, asking: int) -> tuple[str, GraphQLField]:
        every: list[tuple[str, GraphQLField]] = list(type_.fields.items())
        fields = [
            (name, definition)
            for name, definition in every
            if (asking < MOST_ASKING or name not in ASKING)
            and ((levels > 1 and self.left > 0) or not isinstance(get_named_type(definition.type), GraphQLObjectType))
        ]
        # What is below objects is what there is most to find out of.
        deep = [each for each in fields if isinstance(get_named_type(each[1].type), GraphQLObjectType)]
        if deep and self.random.random() < 0.4:
            return self.random.choice(deep)
        if fields:
            return self.random.choice(fields)
        # Objects alone, at the end: one more level, and one with little below.
        return next((each for each in every if each[0] in ("pageInfo", "user", "node")), every[0])

    def _alias(self, name: str | None = None) -> str:
        if self.aliases >= MOST_ALIASES or self.random.random() < 0.7:
            return ""
        self.aliases += 1
        if name == "urlExpiresAt":
            return f"urlExpiresAt{next(self.numbers)}: "
        if self.random.random() < 0.005:
            return "id: "  # in the way of others
        return f"{self.random.choice(('a', 'None', 'v', 'run', '_', '__x', 'class'))}{next(self.numbers)}: "

    def _arguments(self, field_name: str, definition: GraphQLField) -> str:
        written = []
        for name, argument in definition.args.items():
            given = 0.998 if is_required_argument(argument) else 0.3
            if self.random.random() < given:
                written.append(f"{name}: {self._value(field_name, name, argument)}")
        self.random.shuffle(written)
        return f"({', '.join(written)})" if written else ""

    def _value(self, field_name: str, name: str, argument: GraphQLArgument) -> str:
        chance = self.random.random()
        if chance < 0.45:
            return f"${self._variable(field_name, name, argument)}"
        value = self.values.good(field_name, name, argument.type)
        if chance < 0.455:
            value = self.values.wrong()
        elif chance < 0.457 or (chance < 0.5 and not isinstance(argument.type, GraphQLNonNull)):
            value = None
        elif isinstance(value, list) and value and chance < 0.55:
            value = [*value, Name(f"${self._variable(field_name, name, argument, item=True)}")]
        return literal(value)

    def _variable(self, field_name: str, name: str, argument: GraphQLArgument, *, item: bool = False) -> str:
        type_ = argument.type.of_type if isinstance(argument.type, GraphQLNonNull) and item else argument.type
        type_ = getattr(type_, "of_type", type_) if item else type_
        place = (field_name, name, type_)
        known = [key for key, each in self.variables.items() if each.argument == place]
        if known and self.random.random() < 0.4:
            key = self.random.choice(known)
        else:
            key = self._declared(place, has_default=argument.default_value is not Undefined)
        self.used.add(key)
        return key

    def _declared(self, place: tuple[str, str, GraphQLInputType], *, has_default: bool) -> str:
        key = f"{self.random.choice(('v', 'id', 'r', 'made'))}{next(self.numbers)}"
        type_, default = str(place[2]), ""
        if self.random.random() < 0.3:
            default = f" = {literal(self.values.good(*place))}"
            if self.random.random() < 0.03:
                default = f" = {literal(self.values.wrong())}"
        chance = self.random.random()
        if chance < 0.2:
            type_ = type_.removesuffix("!") + "!"
        elif chance < 0.4 and (default or has_default or chance < 0.22):
            type_ = type_.removesuffix("!")
            if chance < 0.21:
                default = " = null"
        self.variables[key] = Variable(f"${key}: {type_}{default}", type_.endswith("!") and not default, place)
        return key

    def _directives(self) -> str:
        if self.random.random() > 0.06:
            return ""
        name = self.random.choice(("skip", "include"))
        chance = self.random.random()
        if chance < 0.35:
            return f" @{name}(if: {'true' if (self.random.random() < 0.5) == (name == 'include') else 'false'})"
        known = [key for key, each in self.variables.items() if each.argument is None]
        if known and chance < 0.6:
            key = self.random.choice(known)
        else:
            key = f"if{next(self.numbers)}"
            declared, needed = self.random.choice(
                (("Boolean!", True), ("Boolean = true", False), ("Boolean! = false", False))
            )
            self.variables[key] = Variable(f"${key}: {declared}", needed, None)
        self.used.add(key)
        again = " @skip(if: false)" if name == "include" and self.random.random() < 0.1 else ""
        return f" @{name}(if: ${key}){again}"


def spoiled(text: str, random: random.Random) -> str:
    """Now and then with something that no document may have."""
    if random.random() > 0.05:
        return text
    return random.choice(
        (
            lambda: text[: random.randrange(len(text))],
            lambda: text.replace("slug", "slugg", 1),
            lambda: text.replace("{", "{ nothing ", 1),
            lambda: text.replace("id", "id { id }", 1),
            lambda: text + " fragment Unused on User { id }",
            lambda: text.replace("query", "query", 1) + " query Q0 { __typename }",
            lambda: text.replace("$", "$$", 1),
            lambda: text.replace("(", "(nothing: 1, ", 1),
            lambda: text.replace("{", "{ ...Missing ", 1),
            lambda: text.replace("{", "{ ... on Segment { id } ", 1),
            lambda: text.replace("{", "{ __typename @nothing ", 1),
            lambda: text.replace("first", "last", 1),
            lambda: "",
        )
    )()


def document(schema: GraphQLSchema, values: Values, random: random.Random) -> Document:
    # More than two hundred are not compiled.
    fields = 250 if random.random() < 0.01 else random.choice((2, 3, 4, 5, 6, 8, 12, 20, 40))
    return Writer(schema, values, random, fields).document()


def case(document: Document, values: Values, random: random.Random) -> Case:
    """A request with that document."""
    given: Any = {}
    for name, variable in document.variables.items():
        chance = random.random()
        if chance < (0.01 if variable.needed else 0.25):
            continue
        if chance < (0.02 if variable.needed else 0.3):
            given[name] = None
        elif chance < (0.04 if variable.needed else 0.33):
            given[name] = values.wrong()
        else:
            given[name] = random.random() < 0.5 if variable.argument is None else values.good(*variable.argument)
    asked: dict[str, Any] = {"query": document.text, "variables": given, "operationName": _name(document, random)}
    if random.random() < 0.03:
        asked["variables"] = random.choice((None, [], [1], "", "x", 0, 1, False, {"other": 1}))
    if random.random() < 0.02:
        asked["extensions"] = random.choice(({}, {"cost": True}, None, []))
    asked = {name: value for name, value in asked.items() if value is not None or random.random() < 0.5}
    accept = random.choice(
        (None, None, "*/*", "application/graphql-response+json", "application/json, text/html;q=0.5")
    )
    return Case(json.dumps(asked, ensure_ascii=random.random() < 0.5).encode(errors="replace"), accept)


def _name(document: Document, random: random.Random) -> Any:
    if random.random() < 0.02:
        return random.choice(("Other", "", 7, None))
    if len(document.operations) == 1 and random.random() < 0.5:
        return None
    return random.choice(document.operations)
