"""Applications whose every statement and command waits until the test lets it go: the order of what races is chosen."""

import asyncio
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from background import execute
from conftest import Client
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncTransaction

from db import connections, journal
from db.bare import Pool
from db.cache import Cache
from server.app import create_app
from server.settings import Settings

# Advisory locks of the pauses: one class for each actor, one number for each place.
CLASS = 9_000
PAUSE = f"""CREATE FUNCTION pause(place integer) RETURNS void LANGUAGE plpgsql SET lock_timeout = 0 AS $$ BEGIN
    IF current_setting('application_name') LIKE 'actor-_' THEN
        PERFORM pg_advisory_xact_lock_shared({CLASS} + CAST(right(current_setting('application_name'), 1) AS integer),
                                             place);
    END IF;
END $$"""
# What the statements within the product's function begin with, before which it pauses: behind the claim, behind the
# queues, behind the rows' locks, before the effects, and before the result.
PLACES = [
    "PERFORM set_config('lock_timeout', '8s', true),\n",
    "WITH live AS (\n",
    "SELECT greatest(clock_timestamp(), max(later.at)",
    "IF adds > 0 THEN",
    "UPDATE operations SET result = (",
]
SOURCE = "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE proname = 'change_user_segments_1'"
WAITING = """SELECT a.application_name, CASE WHEN l.locktype = 'advisory' THEN CAST(l.classid AS bigint) ELSE 0 END
             FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
             WHERE NOT l.granted AND a.datname = current_database() AND a.application_name LIKE 'actor-_'"""
# Whoever waits for nobody gets so far within it, also on a machine that is busy.
PATIENCE_SECONDS = 60
# Of the event loop, before PostgreSQL is asked.
TURNS = 30


@dataclass(slots=True)
class Actor:
    """A process of the service, and the one request that it works on."""

    number: int
    client: Client
    # Holds the locks of this actor's pauses.
    keeper: AsyncConnection
    asking: asyncio.Task[Any] | None = None
    # What waits to be let go, with its name; the answer may be there before the last of it.
    gates: list[tuple[str, asyncio.Future[None]]] = field(default_factory=list)
    at_work: int = 0
    # How many of the places in PostgreSQL it may pass.
    passed: int = 0

    @property
    def answered(self) -> bool:
        return self.asking is not None and self.asking.done()

    @property
    def finished(self) -> bool:
        return self.answered and not self.gates and not self.at_work

    @property
    def at(self) -> str:
        """What it does next, once it is let go; if it is under way and waits for nobody else."""
        return self.gates[0][0] if self.gates else f"place {self.passed + 1}"

    async def rest(self) -> None:
        """What it is asked by others goes on without a pause."""
        self.asking, self.passed = None, 0
        await self.keeper.exec_driver_sql("SELECT pg_advisory_unlock_all()")

    async def begin(self, query: str, variables: dict[str, Any]) -> None:
        await self.rest()
        await self.keeper.exec_driver_sql(
            f"SELECT pg_advisory_lock({CLASS + self.number}, place) FROM generate_series(1, {len(PLACES)}) AS place"
        )
        context = contextvars.copy_context()
        context.run(ACTOR.set, self)
        self.asking = asyncio.create_task(self.client.post(query, variables), context=context)

    async def let_go(self) -> None:
        """Of what it waits for in Python, or else within the product's function."""
        if self.gates:
            _, gate = self.gates.pop(0)
            gate.set_result(None)
        else:
            self.passed += 1
            await self.keeper.exec_driver_sql(f"SELECT pg_advisory_unlock({CLASS + self.number}, {self.passed})")


ACTOR: contextvars.ContextVar[Actor | None] = contextvars.ContextVar("actor", default=None)


@dataclass(frozen=True)
class Stage:
    # In no transaction.
    observer: AsyncConnection
    actors: tuple[Actor, ...]

    async def settled(self) -> set[int]:
        """Wait until nobody gets any further; returns who waits for another actor's locks."""
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE_SECONDS
        while loop.time() < until:
            moving = await self.moving()
            if not moving:
                return set()
            found = await self.observer.exec_driver_sql(WAITING)
            waiting = {int(name[-1]): lock for name, lock in map(tuple, found)}
            if moving == self.at_large() and moving <= waiting.keys():
                return {number for number in moving if waiting[number] != CLASS + number}
        raise AssertionError([(a.number, a.gates, a.asking) for a in self.actors])

    async def moving(self) -> set[int]:
        """Who does not come to rest at once."""
        for _ in range(TURNS):
            if not self.at_large():
                break
            await asyncio.sleep(0)
        return self.at_large()

    def at_large(self) -> set[int]:
        """Who is neither finished nor waits to be let go by us, as far as Python knows."""
        return {a.number for a in self.actors if a.asking is not None and not a.gates and not a.finished}


def _gated(name: str, real: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def gated(*args: Any, **kwargs: Any) -> Any:
        actor = ACTOR.get()
        if actor is None:
            return await real(*args, **kwargs)
        gate = asyncio.get_running_loop().create_future()
        actor.gates.append((name, gate))
        actor.at_work += 1
        try:
            await gate
            return await real(*args, **kwargs)
        finally:
            actor.at_work -= 1

    return gated


async def pausing(engine: AsyncEngine, replaced: dict[str, str]) -> None:
    """Have the product's function pause before its statements, of which some are replaced by others."""
    await execute(engine, PAUSE)
    ((source,),) = await execute(engine, SOURCE)
    for old, new in replaced.items():
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    for number, place in enumerate(PLACES, 1):
        assert source.count(place) == 1, place
        source = source.replace(place, f"PERFORM pause({number});\n{place}")
    async with engine.begin() as tx:
        await tx.exec_driver_sql(source)


@asynccontextmanager
async def stage(
    settings: Settings, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, actors: int
) -> AsyncIterator[Stage]:
    """So many applications, each asked through ASGI, so that what it does is known to be that request's."""
    async with AsyncExitStack() as ending:
        made = []
        autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
        for number in range(1, actors + 1):
            monkeypatch.setitem(connections.WRITING, "application_name", f"actor-{number}")
            client = await ending.enter_async_context(_application(settings))
            made.append(Actor(number, client, await ending.enter_async_context(autocommit.connect())))
        monkeypatch.setitem(connections.WRITING, "application_name", "segmentql")
        # An older one would have more lists not stored than have to be, and less could go wrong.
        monkeypatch.setattr(journal, "FRESH_SECONDS", -1)
        for owner, names in (
            (AsyncConnection, ("execute",)),
            (AsyncTransaction, ("__aexit__",)),
            (Pool, ("fetch",)),
            (Cache, ("entry", "fill", "invalidate", "announce", "plant")),
        ):
            for name in names:
                monkeypatch.setattr(owner, name, _gated(name, getattr(owner, name)))
        yield Stage(await ending.enter_async_context(autocommit.connect()), tuple(made))


@asynccontextmanager
async def _application(settings: Settings) -> AsyncIterator[Client]:
    app = create_app(settings)
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "state": dict(state or {})}, receive, send)

        transport = httpx.ASGITransport(with_state)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=None) as http:
            yield Client(http)
