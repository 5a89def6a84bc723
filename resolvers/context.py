"""What every resolver is given besides its arguments."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

import strawberry
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from db.cache import Cache
from resolvers.callers import Caller
from resolvers.catalogue import Catalogue
from resolvers.errors import LimitExceeded
from resolvers.fair_turns import FairTurns
from resolvers.idempotency import Operations, Outcomes
from resolvers.links import Links
from resolvers.reads import Reads
from resolvers.subscribing import Subscriptions
from resolvers.turns import Turns


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one request may ask for."""

    # Users of one query, and slugs of one `only`.
    list_items: int
    # Edges of one page.
    page_size: int
    # Slugs in each list of one change.
    changes: int
    # Items of all lists of one answer together.
    nodes: int
    # Users, and segments, that one report can be narrowed to.
    report_items: int
    # Users of one bulk change, and pairs of a user and a segment.
    bulk_pairs: int
    # Changes of one `changeMemberships`.
    bulk_changes: int


class Budget:
    """What one operation may still answer."""

    def __init__(self, nodes: int) -> None:
        self._limit = self._left = nodes

    def spend(self, nodes: int) -> None:
        """Refuse an answer that is too long before it is made: making it would hold up everybody else."""
        self._left -= nodes
        if self._left < 0:
            raise LimitExceeded(f"The answer has more than {self._limit} items in its lists.")


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Services:
    """What all requests have together."""

    reader: AsyncEngine
    # How many queries may have a connection at a time, besides those for memberships; callers take turns.
    queries: FairTurns
    cache: Cache
    catalogue: Catalogue
    reads: Reads
    operations: Operations
    # Changes, and bulk changes, at a time: they leave connections to all others.
    turns: Turns
    bulk_turns: Turns
    limits: Limits
    links: Links
    # Tells this process's worker, if it has one, that there is a new task.
    wake: Callable[[], None]
    subscriptions: Subscriptions


# Not frozen: one is made for every request, and that would make it three times as slow.
@dataclass(slots=True)
class Context:
    services: Services
    caller: Caller
    # Whose share of everything this takes: the client's, or where nobody is asked who they are, the address's.
    payer: str
    # What callers have to put in front of our paths.
    origin: Callable[[], str]
    budget: Budget
    # What came of the mutations of this request; and before, when its answer was begun elsewhere and given up there.
    outcomes: Outcomes
    before: Outcomes
    # Ends the connection of a subscriber who reads too slowly.
    drop: Callable[[], None] = _nothing
    # How long a message of a subscription may take to be made, and whether something of the last one could not be.
    message_seconds: float | None = None
    failed: bool = False

    @property
    def client(self) -> str:
        """Whose mutations, keys and tasks these are."""
        return self.caller.client

    @classmethod
    def of(
        cls, services: Services, caller: Caller, payer: str, origin: Callable[[], str], before: Outcomes | None = None
    ) -> "Context":
        """That of a request."""
        return cls(services, caller, payer, origin, Budget(services.limits.nodes), {}, before or {})

    def let_go(self) -> None:
        """Keep no connection: what GraphQL makes of an operation refers to itself, and stays for a while."""
        self.drop, self.origin = _nothing, str

    @asynccontextmanager
    async def querying(self) -> AsyncIterator[AsyncConnection]:
        """A connection for one statement."""
        async with self.services.queries.one(self.payer), self.services.reader.connect() as conn:
            yield conn


Info = strawberry.Info[Context, None]

# Arguments that several fields take.
IdempotencyKey = Annotated[
    str,
    strawberry.argument(
        description=(
            "Chosen by the caller, 8 to 128 printable ASCII characters, a new one for every intention; a retry sends "
            "the same one, and gets the first call's answer with `replayed: true`. Kept for at least 24 hours. Only "
            "what took effect uses a key up."
        )
    ),
]
First = Annotated[int, strawberry.argument(description="How many at most, from 1 to 100; else BAD_USER_INPUT.")]
After = Annotated[
    str | None,
    strawberry.argument(
        description=(
            "A cursor of this list: the page begins behind it. BAD_USER_INPUT when it is none. Null: from the start."
        )
    ),
]
