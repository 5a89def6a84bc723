"""Values that callers might give for an argument: good ones of the world that tests make, odd ones, and wrong ones."""

import json
import random
from dataclasses import dataclass, field
from typing import Any

from graphql import (
    GraphQLEnumType,
    GraphQLInputObjectType,
    GraphQLInputType,
    GraphQLList,
    GraphQLNonNull,
    get_named_type,
)

ODD_IDS = (
    "",
    "é",
    "用户-1",
    "🦊",
    "a b",
    "x" * 128,
    "x" * 129,
    "\x07bell",
    "tab\tbed",
    "'\"\\",
    "\u2028",
    "0",
    "-1",
    "e\u0301",
)
ODD_SLUGS = ("", "nope", "A-1\x00", "ä", "x" * 255, "x" * 256, "%", "_")
INSTANTS = (
    "2020-01-01T00:00:00Z",
    "2024-02-29T23:59:59.999999+05:30",
    "1970-01-01T00:00:00Z",
    "2090-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999999Z",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59-14:00",
    "2024-02-30T00:00:00Z",
    "2024-01-01",
    "2024-01-01T00:00:00",
    "2024-01-01T00:00:00.1234567Z",
    "",
    "now",
)
CURSORS = (
    "",
    "x",
    "bm9uZQ==",
    "W10=",
    "WyJldmVudCIsMSwiQURERUQiLDFd",
    "WyJldmVudCIsOTk5OTk5OTk5OTk5OTk5OTk5LCJBRERFRCIsMV0=",
)
WRONG: tuple[Any, ...] = (
    *(0, 7, -1, 2**31, 2**53 + 1, 10**30, 1.0, 2.5, 1e300, True, False),
    *("", "x", "é", "\ud800", [], [1], ["x"], [None], {}, {"a": 1}),
)


class Name(str):
    """What stands in a document without quotes: the value of an enum, or a variable."""

    __slots__ = ()


@dataclass
class World:
    """What there is to ask for."""

    users: list[str]
    slugs: list[str]
    tasks: list[str]
    # By what they are cursors of.
    cursors: dict[str, list[str]] = field(default_factory=dict)
    # Of the world's own history.
    instants: list[str] = field(default_factory=list)


class Values:
    def __init__(self, world: World, random: random.Random) -> None:
        self.world = world
        self._random = random

    def chance(self, of: float) -> bool:
        return self._random.random() < of

    def good(self, where: str, argument: str, type_: GraphQLInputType) -> Any:
        """One of the right type, though not always one that a resolver takes; `where` is the field's name."""
        inner = type_.of_type if isinstance(type_, GraphQLNonNull) else type_
        if isinstance(inner, GraphQLList):
            return self._list(where, argument, inner.of_type)
        named = get_named_type(inner)
        if isinstance(named, GraphQLEnumType):
            return Name(self._random.choice(list(named.values)))
        if isinstance(named, GraphQLInputObjectType):
            names = [name for name in named.fields if self.chance(0.6)]
            return {name: self.good(where, name, named.fields[name].type) for name in names}
        return self._scalar(where, argument, named.name)

    def wrong(self) -> Any:
        return Name("NEVER") if self.chance(0.1) else self._random.choice(WRONG)

    def _list(self, where: str, argument: str, item: GraphQLInputType) -> Any:
        if self.chance(0.1):
            return self.good(where, argument, item)  # GraphQL takes it for a list of one
        count = self._random.choice((0, 1, 1, 2, 2, 3, 4))
        found = [self.good(where, argument, item) for _ in range(count)]
        if self.chance(0.02):
            found = [self._random.choice(self.world.users)] * self._random.choice((100, 101))
        return found

    def _scalar(self, where: str, argument: str, name: str) -> Any:
        choose, world = self._random.choice, self.world
        if name in ("Int", "BigInt"):
            return (
                choose((1, 1, 2, 2, 3, 5, 10, 50, 100))
                if self.chance(0.985)
                else choose((0, -1, 101, 10_001, 2**31 - 1))
            )
        if name == "Boolean":
            return self.chance(0.5)
        if name == "DateTime":
            return choose(world.instants) if self.chance(0.93) else choose(INSTANTS)
        if argument == "after":
            known = world.cursors.get(where, ())
            return choose(known) if known and self.chance(0.95) else choose(CURSORS)
        if where == "task":
            return choose(world.tasks) if self.chance(0.9) else choose(ODD_IDS)
        if name == "ID":
            return self._id()
        return choose(world.slugs) if self.chance(0.97) else choose(ODD_SLUGS)

    def _id(self) -> Any:
        if self.chance(0.05):
            return self._random.choice((7, 0, -3))
        return self._random.choice(self.world.users) if self.chance(0.98) else self._random.choice(ODD_IDS)


def literal(value: Any) -> str:
    """The value as it stands in a document."""
    if isinstance(value, Name):
        return str(value)
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {literal(each)}' for name, each in value.items())}}}"
    return json.dumps(value)
