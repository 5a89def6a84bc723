"""The application, put together on one screen."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route

from db import connections, secrets
from db.cache import Cache
from db.clock import Clock
from db.files import Files
from resolvers.catalogue import Catalogue
from resolvers.context import Budget, Context
from resolvers.idempotency import Operations
from resolvers.links import Links
from resolvers.reads import Reads
from resolvers.turns import Turns
from schema.api import schema
from server import background, downloads, graphiql, health
from server.documents import Documents
from server.graphql import GraphQLView
from server.long_lists import LongLists
from server.middleware import BodyLimit, StandardHeaders
from server.settings import Settings
from server.uploads import Uploads

# Until callers can say who they are, they all are this one.
ANONYMOUS = "anonymous"
# Of the connections for mutations so large a part may be at work on bulk changes: one of so many.
BULK_SHARE = 4


def create_app(settings: Settings) -> Starlette:
    documents = Documents(settings.document_limits)
    view = GraphQLView(schema([documents.extension, LongLists]), settings.execution_timeout, settings.public_url)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[dict[str, Any]]:
        async with working(settings) as context:
            yield {"context": context}

    return Starlette(
        routes=[
            Route("/graphql", view),
            *downloads.ROUTES,
            *Uploads(settings.max_upload_bytes).routes,
            *health.ROUTES,
            *graphiql.ROUTES,
        ],
        middleware=[Middleware(StandardHeaders), Middleware(BodyLimit, max_bytes=settings.max_body_bytes)],
        lifespan=lifespan,
    )


@asynccontextmanager
async def working(settings: Settings) -> AsyncIterator[Context]:
    """Everything that requests share, for as long as the block lasts; at its end what is under way is finished."""
    assert settings.database_url is not None
    assert settings.redis_url is not None
    writer = connections.writer(settings.database_url, settings.pool_size)
    reader = connections.reader(settings.database_url, settings.read_pool_size)
    clock = Clock()
    cache = Cache(settings.redis_url, settings.redis_budget_ms)
    catalogue = Catalogue(reader, clock)
    # Of the connections for reads one is the catalogue's, and neither memberships nor the other queries take them all.
    others = max(1, (settings.read_pool_size - 1) // 2)
    reads = Reads(reader, cache, catalogue, clock, statements=settings.read_pool_size - 1 - others)
    operations = Operations(writer)
    files = Files(settings.store)
    try:
        await catalogue.refresh()
        async with reader.connect() as conn:
            secret = await secrets.by_name(conn, secrets.LINKS)
        async with cache.running(), background.beside_requests(settings, writer, files, cache) as wake:
            poll = asyncio.create_task(catalogue.poll())
            yield Context(
                reader,
                asyncio.Semaphore(others),
                Budget(settings.limits.nodes),
                cache,
                catalogue,
                reads,
                operations,
                Turns(max(1, settings.pool_size // 2)),
                Turns(1, max(1, settings.pool_size // BULK_SHARE)),
                settings.limits,
                Links(files, secret, settings.link_minutes * 60),
                wake,
                str,
                ANONYMOUS,
            )
            await operations.finish()
            await reads.finish()
            poll.cancel()
            with suppress(asyncio.CancelledError):
                await poll
    finally:
        await writer.dispose()
        await reader.dispose()
