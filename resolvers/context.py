"""What every resolver is given besides its arguments."""

from dataclasses import dataclass
from typing import Annotated

import strawberry
from sqlalchemy.ext.asyncio import AsyncEngine

from db.cache import Cache
from resolvers.catalogue import Catalogue
from resolvers.idempotency import Operations
from resolvers.reads import Reads


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one request may ask for."""

    # Users of one query, and slugs of one `only`.
    list_items: int
    # Edges of one page.
    page_size: int
    # Slugs in each list of one change.
    changes: int


@dataclass(frozen=True, slots=True)
class Context:
    reader: AsyncEngine
    cache: Cache
    catalogue: Catalogue
    reads: Reads
    operations: Operations
    limits: Limits
    # Whose mutations and keys these are.
    client: str


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
