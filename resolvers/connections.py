"""Pages of long lists, as Relay has them: forward, by the position behind which the page begins."""

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import orjson

from resolvers.context import Limits
from resolvers.errors import BadUserInput

Node = TypeVar("Node")


@dataclass(frozen=True, slots=True)
class PageInfo:
    has_next_page: bool
    has_previous_page: bool
    start_cursor: str | None
    end_cursor: str | None


@dataclass(frozen=True, slots=True)
class Edge(Generic[Node]):
    node: Node
    cursor: str


@dataclass(frozen=True, slots=True)
class Connection(Generic[Node]):
    edges: list[Edge[Node]]
    page_info: PageInfo

    @property
    def nodes(self) -> list[Node]:
        return [edge.node for edge in self.edges]


def page_size(first: int, limits: Limits) -> int:
    if not 1 <= first <= limits.page_size:
        raise BadUserInput("first", f"it is {first}, and must be from 1 to {limits.page_size}.")
    return first


def connection(found: Sequence[Node], first: int, after: str | None, cursor: Callable[[Node], str]) -> Connection[Node]:
    """The page of up to `first` of those found, of which there is one more when there is a next page."""
    edges = [Edge(node, cursor(node)) for node in found[:first]]
    return Connection(
        edges,
        PageInfo(
            has_next_page=len(found) > first,
            has_previous_page=after is not None,
            start_cursor=edges[0].cursor if edges else None,
            end_cursor=edges[-1].cursor if edges else None,
        ),
    )


def encode_cursor(kind: str, *position: str | int) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([kind, *position])).decode()


def decode_cursor(cursor: str, kind: str, *types: type) -> tuple[object, ...]:
    """The position, whose parts have those types. A cursor of another list, or of nobody, is refused."""
    try:
        found = orjson.loads(base64.b64decode(cursor.encode("ascii"), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error):
        found = None
    if not isinstance(found, list) or [type(part) for part in found] != [str, *types] or found[0] != kind:
        raise bad_cursor()
    return tuple(found[1:])


def bad_cursor() -> BadUserInput:
    return BadUserInput("after", "this is not a cursor of this list.")
