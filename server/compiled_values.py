"""What compiled queries do with values that are not simply there, or not simply right."""

from collections.abc import Callable
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


def rendered(make: Callable[[Any, Any, Any], Any], values: Any, run: Any, v: Any) -> Any:
    """What is made of a list; of one that is kept it is made into text when it is asked for again, and kept with it."""
    if type(values) is not Kept and type(values) is not Segments:
        return make(values, run, v)
    known = values.rendered
    if known is not None and known[0] is make:
        if known[1] is None:
            known = values.rendered = make, orjson.Fragment(orjson.dumps(make(values, run, v)))
        return known[1]
    values.rendered = make, None
    return make(values, run, v)
