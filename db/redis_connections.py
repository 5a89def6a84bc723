"""How Redis is connected to. How long that may take, and whether it is tried again, is for whoever does it to say."""

from collections.abc import Awaitable, Callable
from typing import Any

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff


def connections(
    url: str, greet: Callable[[AbstractConnection], Awaitable[None]] | None = None
) -> Callable[[], AbstractConnection]:
    """What makes them, each to be connected; `greet` is called with one that is."""
    # redis-py would otherwise wait five seconds, ten times over, and send commands twice.
    settings: dict[str, Any] = {"socket_timeout": None, "socket_connect_timeout": None, "retry": Retry(NoBackoff(), 0)}
    pool = ConnectionPool.from_url(url, protocol=3, redis_connect_func=greet, **settings)
    return pool.make_connection
