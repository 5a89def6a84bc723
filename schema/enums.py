"""How an enum of the layers below gets its descriptions."""

from enum import Enum

import strawberry
from strawberry.types.enum import StrawberryEnumDefinition


def enum(cls: type[Enum], description: str, **values: str) -> None:
    """Register `cls` itself as a GraphQL enum, with a description of each of its values."""
    if values.keys() != cls.__members__.keys():
        raise TypeError(f"{cls.__name__} has values without a description, or descriptions without a value")
    # An input that has it has made it one already.
    if "__strawberry_definition__" not in vars(cls):
        strawberry.enum(cls)
    definition: StrawberryEnumDefinition = cls.__strawberry_definition__  # type: ignore[attr-defined]  # just seen to
    definition.description = description
    for value in definition.values:
        value.description = values[value.name]
