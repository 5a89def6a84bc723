"""Strawberry as it comes: its ASGI view, its caches of documents, and resolvers over the same store."""

from enum import Enum
from functools import cache

import strawberry
from strawberry.asgi import GraphQL
from strawberry.extensions import ParserCache, ValidationCache

from bench.peers.store import Entry, Lists, active

lists = cache(Lists)


@strawberry.enum
class Freshness(Enum):
    CACHED = "CACHED"
    LATEST = "LATEST"


@strawberry.type
class Segment:
    slug: str


@strawberry.type
class Membership:
    segment: Segment
    added_at: str
    expires_at: str | None


@strawberry.type
class User:
    id: strawberry.ID

    @strawberry.field
    async def segments(self) -> list[Segment]:
        return [Segment(slug=entry[0]) for entry in await lists().of(self.id)]

    @strawberry.field
    async def memberships(self, freshness: Freshness = Freshness.CACHED) -> list[Membership]:
        entries = await (lists().of(self.id) if freshness is Freshness.CACHED else _latest(self.id))
        return [
            Membership(segment=Segment(slug=slug), added_at=added, expires_at=expires)
            for slug, added, expires, _ in entries
        ]

    @strawberry.field
    async def is_in(self, slug: str) -> bool:
        return any(entry[0] == slug for entry in await lists().of(self.id))


async def _latest(user_id: str) -> list[Entry]:
    return active((await lists().fetched([user_id]))[user_id])


@strawberry.type
class Query:
    @strawberry.field
    def user(self, id: strawberry.ID) -> User:
        return User(id=id)

    @strawberry.field
    def users(self, ids: list[strawberry.ID]) -> list[User]:
        return [User(id=id) for id in ids]


app: GraphQL[object, None] = GraphQL(strawberry.Schema(Query, extensions=[ParserCache, ValidationCache]))
