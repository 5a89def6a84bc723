"""What compiled queries do with values that are not simply there, or not simply right."""

from collections.abc import Callable, Sequence
from typing import Any

import orjson
from graphql import Undefined

from resolvers.kept import Kept, Segments


class SurpriseError(Exception):
    """Something is not as a compiled query takes it to be. What it means is for graphql-core to say."""


def leaf(serialize: Callable[[Any], Any], value: object) -> object:
    """A scalar or an enum's value, as it stands in the answer."""
    serialized = None if value is None else serialize(value)
    if serialized is None or serialized is Undefined:
        raise SurpriseError
    return serialized


def leaf_or_null(serialize: Callable[[Any], Any], value: object) -> object:
    return None if value is None else leaf(serialize, value)


def listed(values: object) -> list[Any]:
    """The values of a list. graphql-core takes other collections, too, none of which a resolver of ours gives."""
    if not isinstance(values, list):
        raise SurpriseError
    return values


def present(record: object) -> Any:
    """A record that must be there."""
    if record is None:
        raise SurpriseError
    return record


class Rendering:
    """What is made of a list; of one that is kept it is made into text when it is asked for again, and kept with it."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[Any, Any, Any], Any]) -> None:
        self._make = make

    def __call__(self, values: Any, run: Any, v: Any) -> Any:
        if type(values) is not Kept and type(values) is not Segments:
            return self._make(values, run, v)
        known = values.rendered
        if known is None or known[0] is not self:
            values.rendered = self, None
            return self._make(values, run, v)
        if known[1] is None:
            known = values.rendered = self, orjson.Fragment(orjson.dumps(self._make(values, run, v)))
        return known[1]

    def all(self, values: Sequence[Any], made: Sequence[dict[str, Any]], key: str, run: Any, v: Any) -> None:
        """Of each list, and into its place."""
        for each, place in zip(values, made, strict=True):
            # As above: nearly always it is there, and a call takes as long as all of this.
            if (
                type(each) is Kept
                and (known := each.rendered) is not None
                and known[0] is self
                and known[1] is not None
            ):
                place[key] = known[1]
            else:
                place[key] = self(each, run, v)
