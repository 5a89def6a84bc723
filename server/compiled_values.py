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


def rendered(owner: object, values: Any, make: Callable[[Any, Any, Any], Any], whole: Any, run: Any, v: Any) -> Any:
    """What is made of a list; of one that is kept it is made into text when it is asked for again, and kept with it."""
    if type(values) is not Kept and type(values) is not Segments:
        return make(whole, run, v)
    known = values.rendered
    if known is None or known[0] is not owner:
        values.rendered = owner, None
        return make(whole, run, v)
    if known[1] is None:
        known = values.rendered = owner, orjson.Fragment(orjson.dumps(make(whole, run, v)))
    return known[1]


class Rendering:
    """Makes of a list what stands for it in the answer."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[Any, Any, Any], Any]) -> None:
        self.make = make

    def __call__(self, values: Any, run: Any, v: Any) -> Any:
        return rendered(self, values, self.make, values, run, v)

    def all(self, values: Sequence[Any], made: Sequence[dict[str, Any]], key: str, run: Any, v: Any) -> None:
        """Of each list, and into its place."""
        for each, place in zip(values, made, strict=True):
            place[key] = self(each, run, v)


class Objects:
    """Makes of users and a list of each, which belongs under a key, the objects that stand for them in the answer."""

    __slots__ = ("_begin", "_key", "complete")

    def __init__(self, begin: Callable[[Any, Any, Any], dict[str, Any]], key: str, complete: Rendering) -> None:
        # The object without the list: it depends on nothing but the user.
        self._begin = begin
        self._key = key
        self.complete = complete

    def begun(self, users: Sequence[Any], run: Any, v: Any) -> list[dict[str, Any]]:
        return [self._begin(user, run, v) for user in users]

    def all(self, values: Sequence[Any], made: list[Any], _: str, run: Any, v: Any) -> None:
        """Of each list and its user, and into the user's place."""
        made[:] = [
            known[1]
            # As in `rendered`: nearly always it is there, and a call takes as long as all of this.
            if type(each) is Kept and (known := each.rendered) is not None and known[0] is self and known[1] is not None
            else rendered(self, each, self._whole, (user, each), run, v)
            for each, user in zip(values, made, strict=True)
        ]

    def _whole(self, given: tuple[Any, Any], run: Any, v: Any) -> dict[str, Any]:
        user, values = given
        made = self._begin(user, run, v)
        made[self._key] = self.complete.make(values, run, v)
        return made
