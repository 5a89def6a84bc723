"""The application, put together on one screen."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route, WebSocketRoute

from db import connections, secrets
from db.beside import beside
from db.cache import Cache
from db.clock import Clock
from db.files import Files
from db.limiter import Limiter
from resolvers.callers import ANONYMOUS
from resolvers.catalogue import Catalogue
from resolvers.context import Context, Services
from resolvers.fair_turns import FairTurns
from resolvers.idempotency import Operations
from resolvers.links import Links
from resolvers.places import Places
from resolvers.reads import Reads
from resolvers.subscribing import Subscriptions
from resolvers.turns import Turns
from schema.api import schema
from server import background, downloads, exposure, graphiql, health, metrics, trusted
from server.access import Access
from server.addresses import Addresses
from server.admission import Admission, Gate
from server.authentication import Authentication, Logins
from server.charging import Charging
from server.cors import cors
from server.discretion import Discretion
from server.documents import Documents
from server.fast_path import FastPath
from server.graphql import PATH
from server.hosts import Hosts, Names
from server.jwt import Jwts
from server.known_tokens import KnownTokens
from server.leaving import Leaving
from server.long_lists import LongLists
from server.messages import Executor
from server.middleware import BodyLimit, StandardHeaders, standard_headers
from server.observation import Observation
from server.operating import Operating
from server.persisted import Persisted
from server.plans import Plans
from server.requests import RequestLog
from server.sessions import Sessions
from server.settings import Settings
from server.traffic import Traffic
from server.transports import Transports
from server.uploads import Uploads
from server.websockets import Shared

if TYPE_CHECKING:
    from server.tracing import Traces

# Of the connections for mutations so large a part, and one more, are for those that are several statements: one of so
# many. Half of these may be at work on bulk changes.
SEVERAL_SHARE = 4
# Bulk changes that wait or are at work: more would be given up before they had their turn, and each holds its list.
BULK_WAITING = 100
# Who asks with a link, and has no points: all of them together take one caller's turns.
LINKS = "links"


def create_app(settings: Settings, leaving: Leaving | None = None) -> Starlette:
    traces = _traces(settings)
    discreet = not exposure.shows_schema(settings)
    documents = Documents(settings.document_limits, discreet=discreet)
    persisted = Persisted(automatic=settings.persisted_queries == "automatic")
    extensions = [documents.extension, Observation, Access, Charging().extension, LongLists]
    # Before anybody looks at a document it has to be known which one is meant.
    built = schema([persisted.extension, *([Discretion] if discreet else []), *extensions], Executor)
    persisted.trusted = trusted.read(settings, built, documents)
    leaving, gate = leaving or Leaving(), Gate(settings)
    headers = standard_headers(https=(settings.public_url or "").startswith("https:"))
    plans = Plans(built, documents)
    logins, sessions = Logins(settings), Sessions(settings.max_subscriptions_per_client)
    leaving.endings.append(sessions.end_all)
    view = Transports(
        built,
        settings.execution_timeout,
        settings.public_url,
        Shared(logins, gate, sessions, Operating(built, settings.execution_timeout, settings.slow_ms)),
        graphiql=exposure.shows_graphiql(settings),
    )

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[dict[str, Any]]:
        try:
            async with (
                working(settings, traces) as state,
                sessions.looked_after(state["tokens"], state["jwts"], state["traffic"]),
            ):
                # What is traced goes the long way: that is what a trace is to show.
                if traces is None and settings.fast_path == "on":
                    state["fast_path"] = FastPath(settings, plans, persisted, gate, leaving, headers, state)
                yield state
        finally:
            if traces is not None:
                await asyncio.to_thread(traces.finish)

    return Starlette(
        routes=[
            Route(PATH, view),
            WebSocketRoute(PATH, view),
            *downloads.ROUTES,
            *Uploads(settings.max_upload_bytes).routes,
            *health.Readiness().routes,
            *(graphiql.ROUTES if exposure.shows_graphiql(settings) else []),
        ],
        middleware=[
            *([traces.middleware] if traces is not None else []),
            Middleware(Addresses, proxies=settings.trusted_proxies),
            Middleware(RequestLog, slow_ms=settings.slow_ms, leaving=leaving),
            Middleware(StandardHeaders, headers=headers),
            Middleware(
                Hosts,
                names=Names(exposure.allowed_hosts(settings)),
                origins=exposure.allowed_origins(settings),
                connecting=exposure.named_origins(settings),
                direct=exposure.takes_direct_requests_alone(settings),
            ),
            *cors(settings),
            Middleware(Authentication, logins=logins),
            Middleware(Admission, gate=gate),
            Middleware(BodyLimit, max_bytes=settings.max_body_bytes),
        ],
        lifespan=lifespan,
    )


def _traces(settings: Settings) -> "Traces | None":
    if settings.tracing == "off":
        return None
    # Its libraries take a fifth of a second and some megabytes, for what few switch on.
    from server.tracing import Traces  # noqa: PLC0415  # see above

    return Traces()


@asynccontextmanager
async def working(settings: Settings, traces: "Traces | None" = None) -> AsyncIterator[dict[str, Any]]:
    """Everything that requests share, for as long as the block lasts; at its end what is under way is finished."""
    assert settings.database_url is not None
    assert settings.redis_url is not None
    # Of the connections for mutations most take the changes of one user, and the others what takes several statements.
    several = settings.pool_size // SEVERAL_SHARE + 1
    primary = connections.primary(settings.database_url)
    writer = connections.writer(primary, several)
    changes = connections.bare_writer(primary, settings.pool_size - several)
    # Of the connections for reads one is the catalogue's, and neither memberships nor the other queries take them all.
    others = max(1, (settings.read_pool_size - 1) // 2)
    reader = connections.reader(primary, 1 + others)
    clock = Clock()
    cache = Cache(settings.redis_url, settings.redis_budget_ms)
    catalogue = Catalogue(reader, clock)
    reads = Reads(primary, cache, catalogue, clock, statements=settings.read_pool_size - 1 - others)
    # Of what may be under way at a time mutations are no more than half, and those that may have to wait for others'
    # changes of a segment a quarter: there are places left for whoever only reads.
    mutations = max(1, settings.max_concurrent // 2)
    half = max(1, mutations // 2)
    operations = Operations(writer, changes, mutations)
    subscriptions = Subscriptions(settings.redis_url, reader, cache, catalogue, settings.max_subscriptions_per_client)
    files, traffic = Files(settings.store), Traffic()
    jwts = None if settings.jwt_issuer is None else Jwts(settings)
    try:
        await catalogue.refresh()
        # The first look has read all segments, and that long the database's clock is not known well; this one is short.
        await catalogue.refresh()
        async with reader.connect() as conn:
            secret = await secrets.by_name(conn, secrets.LINKS)
        async with (
            beside(primary.watch()),
            beside(metrics.watch_the_loop()),
            metrics.watching(writer=writer, changes=changes, reader=reader, memberships=reads.pool),
            nullcontext() if traces is None else traces.following(cache.pipeline, writer, changes, reader, reads.pool),
            cache.running(),
            background.beside_requests(settings, writer, files, cache, traffic) as wake,
            KnownTokens(reader, operations).running() as tokens,
            beside(catalogue.poll()),
            subscriptions.running(),
        ):
            services = Services(
                reader,
                FairTurns(others),
                cache,
                catalogue,
                reads,
                operations,
                Turns(Places(half), max(1, changes.size // 2)),
                Turns(Places(min(half, BULK_WAITING)), 1, several // 2),
                settings.limits,
                Links(files, secret, settings.link_minutes * 60, tokens.good),
                wake,
                subscriptions,
            )
            # For what is behind links.
            context = Context.of(services, ANONYMOUS, LINKS, str)
            limiter = Limiter(cache)
            yield {
                "services": services,
                "context": context,
                "limiter": limiter,
                "tokens": tokens,
                "jwts": jwts,
                "traffic": traffic,
            }
            await operations.finish()
            await reads.finish()
    finally:
        if jwts is not None:
            await jwts.close()
        await changes.close()
        await writer.dispose()
        await reader.dispose()
