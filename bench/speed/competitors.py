"""Who is measured, and how each is started."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bench.speed import servers
from bench.speed.data import Data
from bench.speed.servers import Server


@dataclass(frozen=True, slots=True)
class Competitor:
    name: str
    title: str
    start: Callable[[Data], AbstractContextManager[Server]]
    ours: bool = False
    # Where the contract is another: its documents for our works, and how its answers would be told by ours.
    documents: dict[str, str] = field(default_factory=dict)
    told: Callable[[Any, Any], Any] = field(default=lambda answer, asked: answer)

    @property
    def base(self) -> str:
        """Its name, in however many processes."""
        return self.name.removesuffix("-2")


OF_POSTGRAPHILE = """query U($id: String!) {
  allActiveMemberships(condition: {userId: $id}, orderBy: SLUG_ASC) { nodes { slug addedAt expiresAt } } }"""


def _told_by_postgraphile(answer: Any, asked: Any) -> Any:
    nodes = answer["allActiveMemberships"]["nodes"]
    listed = [
        {
            "segment": {"slug": node["slug"]},
            "addedAt": _zulu(node["addedAt"]),
            "expiresAt": node["expiresAt"] and _zulu(node["expiresAt"]),
        }
        for node in nodes
    ]
    return {"user": {"id": asked["id"], "memberships": listed}}


def _zulu(instant: str) -> str:
    return instant.replace("+00:00", "Z")


SEGMENTQL = Competitor("segmentql", "SegmentQL", servers.ours, ours=True)
ALL = (
    SEGMENTQL,
    Competitor("mercurius", "mercurius, compiled", partial(servers.node, program="mercurius")),
    Competitor("yoga", "GraphQL Yoga, compiled", partial(servers.node, program="yoga")),
    Competitor(
        "postgraphile",
        "PostGraphile, no cache",
        partial(servers.node, program="postgraphile"),
        documents={"memberships": OF_POSTGRAPHILE, "latest": OF_POSTGRAPHILE},
        told=_told_by_postgraphile,
    ),
    Competitor("strawberry", "plain Strawberry", partial(servers.python, program="plain")),
    Competitor("bare", "bare ASGI", partial(servers.python, program="bare")),
    Competitor("route", "Starlette route", partial(servers.python, program="route")),
    Competitor("guarded", "SegmentQL with tokens, limits and log", servers.guarded, ours=True),
    Competitor("segmentql-2", "SegmentQL, 2 processes", partial(servers.ours, WORKERS="2"), ours=True),
    Competitor("mercurius-2", "mercurius, 2 processes", partial(servers.node, program="mercurius", number=2)),
    Competitor("bare-2", "bare ASGI, 2 processes", partial(servers.python, program="bare", number=2)),
)
BY_NAME = {competitor.name: competitor for competitor in ALL}
