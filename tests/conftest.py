"""The real application on a real PostgreSQL and Valkey, one pair of servers for each test worker."""

import asyncio
import dataclasses
import itertools
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
import uvicorn
from breaking import Valkey
from databases import PREPARED, fresh, migrated, sql
from redis.asyncio import Redis
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine

from db import connections
from server import embedded, fast_protocol, websocket_protocol
from server.app import create_app
from server.embedded import Servers
from server.settings import Settings

ROOT = Path(__file__).parent.parent
pytest_plugins = ["secrets_in_logs"]
# Truncating makes dozens of files anew, deleting a few rows makes none.
EMPTY = """
    DO $$ DECLARE name text; many boolean; BEGIN
        FOREACH name IN ARRAY ARRAY[
            'memberships', 'membership_events', 'operations', 'segments', 'rollout_changes', 'exclusions', 'tasks',
            'job_runs', 'tokens'
        ] LOOP
            EXECUTE format('SELECT count(*) > 2000 FROM (SELECT FROM %I LIMIT 2001) AS few', name) INTO many;
            EXECUTE format(CASE WHEN many THEN 'TRUNCATE %I' ELSE 'DELETE FROM %I' END, name);
        END LOOP;
        PERFORM setval('segments_id_seq', 1, false), setval('operations_id_seq', 1, false);
        UPDATE catalogue SET version = 0 WHERE version <> 0;
    END $$
"""


def pytest_configure() -> None:
    """Have processes that tests start hear of Ctrl-C, which a shell has its work in the background ignore."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what wants a browser, so that the suite itself needs none."""
    for item in items:
        if "chromium" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.pages)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what tests want to be seen, from every worker."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "printed":
                terminalreporter.write_line(str(value))


class Ask(Protocol):
    """Send one operation; its `data` is returned, and errors fail the test."""

    def __call__(self, query: str, **variables: object) -> Awaitable[Any]: ...


@dataclass(frozen=True)
class Client:
    """One server, as callers see it."""

    http: httpx.AsyncClient

    async def post(self, query: str, variables: dict[str, Any] | None = None) -> dict[str, Any]:
        """The whole answer, errors included."""
        response = await self.http.post("/graphql", json={"query": query, "variables": variables or {}})
        answer: dict[str, Any] = response.json()
        return answer

    async def ask(self, query: str, **variables: object) -> Any:
        answer = await self.post(query, variables)
        assert "errors" not in answer, answer["errors"]
        return answer["data"]


Serve = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of a PostgreSQL that was just made and migrated: it is copied in a tenth of the time."""
    folder = tmp_path_factory.mktemp("cluster")
    with embedded.running(folder, durable=False) as running:
        asyncio.run(migrated(running.database_url))
    return folder / "postgres"


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with embedded.running(tmp_path_factory.mktemp("servers"), durable=False) as running:
        asyncio.run(migrated(running.database_url))
        # From elsewhere: nobody may be connected to what is copied.
        elsewhere = make_url(running.database_url).set(database="postgres").render_as_string(hide_password=False)
        sql(elsewhere, f"CREATE DATABASE {PREPARED} TEMPLATE {make_url(running.database_url).database}")
        yield running


@pytest.fixture
def database_url(servers: Servers) -> Iterator[str]:
    """A database of the test's own, with nothing in it."""
    with fresh(servers) as url:
        yield url


@pytest.fixture
def prepared_url(servers: Servers) -> Iterator[str]:
    """A database of the test's own, with the tables and partitions."""
    with fresh(servers, PREPARED) as url:
        yield url


@pytest.fixture(autouse=True)
def long_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may look elsewhere until the journal has ended, and then a list would not be stored."""
    monkeypatch.setattr("db.journal.JOURNAL_MS", 600_000)


@pytest.fixture
async def engine(servers: Servers) -> AsyncIterator[AsyncEngine]:
    """The database, empty."""
    engine = connections.writer(servers.database_url, pool_size=4)
    async with engine.begin() as tx:
        await tx.execute(text(EMPTY))
    yield engine
    await engine.dispose()


@pytest.fixture
async def redis(servers: Servers) -> AsyncIterator[Redis]:
    """The cache, empty."""
    redis = Redis.from_url(servers.redis_url)
    await redis.flushall()
    yield redis
    await redis.aclose()


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[Valkey]:
    """One of the test's own, which it may do anything to."""
    valkey = Valkey(tmp_path)
    await valkey.start()
    yield valkey
    await valkey.end()


@pytest.fixture
def settings(servers: Servers, tmp_path: Path) -> Settings:
    """Nothing goes on in the background, unless a test asks for it with `serve_tasks`."""
    return Settings(
        database_url=servers.database_url,
        redis_url=servers.redis_url,
        port=0,
        data_dir=tmp_path,
        serve_tasks=0,
    )


@pytest.fixture
def serve(settings: Settings, engine: AsyncEngine, redis: Redis) -> Serve:
    """Start the application; keyword arguments change its settings."""

    @asynccontextmanager
    async def serving(**changes: Any) -> AsyncIterator[Client]:
        changed = dataclasses.replace(settings, **changes)
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(changed),
                http=fast_protocol.bounded(changed.max_header_bytes),
                log_config=None,
                access_log=False,
                ws=websocket_protocol.WebSocketProtocol,
                **websocket_protocol.SETTINGS,
                lifespan="on",
                timeout_graceful_shutdown=5,
                timeout_keep_alive=60,
                proxy_headers=False,
            )
        )
        server.capture_signals = nullcontext  # type: ignore[assignment, method-assign]  # they are pytest's
        # As TCP by name, so that asyncio knows to send without delay.
        with socket.socket(proto=socket.IPPROTO_TCP) as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            running = asyncio.create_task(server.serve(sockets=[listener]))
            # Callers connect at once and are answered when the application has started.
            try:
                limits = httpx.Limits(max_connections=1_000)
                async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits) as http:
                    yield Client(http)
            finally:
                server.should_exit = True
                await running

    return serving


@pytest.fixture
async def client(serve: Serve) -> AsyncIterator[Client]:
    async with serve() as client:
        yield client


@pytest.fixture
def ask(client: Client) -> Ask:
    return client.ask


@pytest.fixture
def server_url(client: Client) -> str:
    return str(client.http.base_url)


@pytest.fixture
def key() -> Callable[[], str]:
    """A new idempotency key at each call."""
    numbers = itertools.count(1)
    return lambda: f"test-key-{next(numbers)}"


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port
