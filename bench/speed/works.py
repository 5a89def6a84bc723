"""The works that are measured: what is asked, of which users, and in what state the cache is meanwhile."""

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from bench.speed.data import Data

# Asked again and again while the cache has them.
ASKED = 20_000
# More than anybody reads within one measurement: each is read once.
ONCE = 100_000
TOGETHER = 100
USERS = """query ($ids: [ID!]!) {
  users(ids: $ids) { id memberships { segment { slug } addedAt expiresAt } } }"""
_turns = itertools.count(1)


class Cache(Enum):
    """What it has when the measurement begins."""

    WARM = "every list that is asked for"
    EMPTY = "nothing"


@dataclass(frozen=True, slots=True)
class Work:
    name: str
    title: str
    document: str
    # Of every request, for users from that one on; the same each time, or others each turn.
    variables: Callable[[Data, int], list[dict[str, Any]]]
    competitors: tuple[str, ...]
    cache: Cache = Cache.WARM
    # Users that one request is about.
    units: int = 1
    # Whether requests may be sent again once all were sent.
    repeats: bool = True

    def bodies(self, data: Data, turn: int, document: str | None = None) -> list[str]:
        """Of a turn the requests of one measurement."""
        return [
            json.dumps({"query": document or self.document, "variables": each}) for each in self.variables(data, turn)
        ]


def turn() -> int:
    """A number that no measurement of this run has had."""
    return next(_turns)


def _one(data: Data, _: int) -> list[dict[str, Any]]:
    return [{"id": user_id} for user_id in data.user_ids(0, ASKED)]


def _one_once(data: Data, number: int) -> list[dict[str, Any]]:
    # Two turns that follow each other, a warm-up and a measurement, have no user in common.
    once = min(ONCE, data.users // 2)
    return [{"id": user_id} for user_id in data.user_ids(number * once, once)]


def _one_slug(data: Data, _: int) -> list[dict[str, Any]]:
    ids = data.user_ids(0, ASKED)
    # Every second is asked about a segment that the user is not in.
    return [{"id": user_id, "slug": data.slug(number + number % 2, number % 6)} for number, user_id in enumerate(ids)]


def _hundred(data: Data, _: int) -> list[dict[str, Any]]:
    ids = data.user_ids(0, ASKED)
    return [{"ids": ids[first : first + TOGETHER]} for first in range(0, ASKED, TOGETHER)]


def _change(data: Data, number: int) -> list[dict[str, Any]]:
    # A segment that none of these users is in yet: each turn begins memberships.
    return [
        {
            "input": {"userId": user_id, "add": [data.slug(first, 6 + number)]},
            "key": f"bench-{time.time_ns()}-{first}",
        }
        for first, user_id in enumerate(data.user_ids(0, ONCE))
    ]


EVERYBODY = ("segmentql", "mercurius", "yoga", "postgraphile", "strawberry", "bare", "route", "guarded")
GRAPHQL = ("segmentql", "mercurius", "yoga", "strawberry")
MEMBERSHIPS = Work(
    "memberships",
    "one user's memberships",
    "query U($id: ID!) { user(id: $id) { id memberships { segment { slug } addedAt expiresAt } } }",
    _one,
    EVERYBODY,
)
SEGMENTS = Work(
    "segments",
    "one user's segments",
    "query U($id: ID!) { user(id: $id) { segments { slug } } }",
    _one,
    (*GRAPHQL, "bare"),
)
IS_IN = Work(
    "isIn",
    "whether one user is in a segment",
    "query U($id: ID!, $slug: String!) { user(id: $id) { isIn(slug: $slug) } }",
    _one_slug,
    GRAPHQL,
)
HUNDRED = Work("users", "a hundred users' memberships", USERS, _hundred, GRAPHQL, units=TOGETHER)
COLD = Work(
    "cold",
    "one user's memberships, cache empty",
    MEMBERSHIPS.document,
    _one_once,
    GRAPHQL,
    cache=Cache.EMPTY,
    repeats=False,
)
LATEST = Work(
    "latest",
    "one user's memberships from PostgreSQL",
    "query U($id: ID!) { user(id: $id) { id memberships(freshness: LATEST) { segment { slug } addedAt expiresAt } } }",
    _one,
    (*GRAPHQL, "postgraphile"),
)
CHANGE = Work(
    "change",
    "changeUserSegments",
    """mutation C($input: ChangeUserSegmentsInput!, $key: String!) {
  changeUserSegments(input: $input, idempotencyKey: $key) { added replayed userErrors { code } } }""",
    _change,
    ("segmentql", "mercurius"),
    repeats=False,
)
TWO = Work(
    "two",
    "one user's memberships, two processes each",
    MEMBERSHIPS.document,
    _one,
    ("segmentql-2", "mercurius-2", "bare-2"),
)
OFFERED = replace(MEMBERSHIPS, name="offered", competitors=("segmentql", "mercurius", "yoga", "bare"))
BULK = """mutation A($input: AddUsersToSegmentInput!, $key: String!) {
  addUsersToSegment(input: $input, idempotencyKey: $key) { added replayed userErrors { code } } }"""
# Those that change something are last: the peers' lists would not be told.
WORKS = (MEMBERSHIPS, SEGMENTS, IS_IN, HUNDRED, COLD, LATEST, TWO, OFFERED, CHANGE)
