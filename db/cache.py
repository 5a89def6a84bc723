"""What Redis holds, and the one rule of using it: it may vanish at any moment, and nothing gets wrong.

Two kinds of keys. One per user: the packed memberships, or a lease while somebody reads them from PostgreSQL. And one
for all: the *state*, which is the version of the catalogue and a *generation*. A list counts only under the generation
that it was stored under. A process that could not invalidate, or that has seen Redis away, removes the state before it
trusts Redis again: whatever was stored before is then of an old generation and no longer read by anyone.
"""

import asyncio
import logging
import random
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import OutOfMemoryError, RedisError

from db import metrics
from db.beside import beside
from db.cache_format import (
    ANNOUNCE,
    CLOSE,
    CLOSED,
    FILL,
    GENERATION_LENGTH,
    LEASE,
    LIST,
    OPEN,
    REMOVE,
    STATE,
    TAKE_LEASES,
    USER,
    Fetched,
    Leased,
    State,
    key,
    new_generation,
    parse_list,
    parse_state,
)

log = logging.getLogger(__name__)

RUN_ID = re.compile(rb"run_id:(\w+)")
# Longer than the slowest fill: a read's statement timeout is 2.5 s (db/connections.py).
LEASE_MS = 3_000
# A process that Redis is cut off from cannot invalidate. With the lease this stays below the promised minute; spread,
# so that lists stored together do not all have to be read again together.
TTL_MS = (45_000, 55_000)
CONNECTIONS = 16
# Keys that one command removes; and from how many on their users are sent together.
UNLINKED = 2_000
FEW = 100
# Consecutive reads that fail before Redis is left alone.
FAILURES = 3
# Whoever closes it and dies has not closed it for ever.
CLOSED_MS = 60_000
# Of the event loop: enough to connect, to be greeted, to send and to be answered, by a Redis that is there.
TURNS = 20
PROBE_SECONDS = 0.1
HEALTH_SECONDS = 0.25


class Cache:
    """Every command that is sent to Redis.

    No method raises because of Redis: what cannot be had within the budget is None, and the caller asks PostgreSQL.
    """

    def __init__(self, url: str, budget_ms: int) -> None:
        self._budget = budget_ms / 1000
        # redis-py would otherwise wait five seconds, ten times over, and send commands twice; `_in_time` keeps time.
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            timeout=None,
            socket_timeout=None,
            socket_connect_timeout=None,
            retry=Retry(NoBackoff(), 0),
            protocol=3,
            redis_connect_func=self._greet,
        )
        self._redis: Redis = Redis(connection_pool=pool)
        self._take_leases = self._redis.register_script(TAKE_LEASES)
        self._fill = self._redis.register_script(FILL)
        self._announce = self._redis.register_script(ANNOUNCE)
        self._close = self._redis.register_script(CLOSE)
        self._open = self._redis.register_script(OPEN)
        self._remove = self._redis.register_script(REMOVE)
        self._failures = 0
        self._leases = 0
        self._process = secrets.token_hex(8).encode()
        # Which start of which server answered last.
        self._run_id: bytes | None = None
        # Nothing is known about Redis before the first probe has answered.
        self.available = False
        # Changes that Redis was not told of: as long as there are any, what it holds may be stale.
        self._untold = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watch over Redis for as long as the block lasts."""
        await self._probe()
        try:
            async with beside(self._watch()):
                yield
        finally:
            await self._redis.aclose()
            await self._redis.connection_pool.disconnect()

    async def fetch(self, user_ids: Sequence[str]) -> Fetched | None:
        """The state and the users' lists, in one command."""
        found = await self._read(lambda: self._redis.mget([STATE, CLOSED, *map(key, user_ids)]))
        if found is None or found[1] is not None:
            return None
        state = parse_state(found[0])
        if state is None:
            return Fetched(None, [None] * len(user_ids))
        return Fetched(state, [parse_list(value, state.generation) for value in found[2:]])

    async def take_leases(self, user_ids: Sequence[str], generation: bytes) -> Leased | None:
        """Become the one who reads these users' lists from PostgreSQL, where nobody else is and none is stored."""
        self._leases += 1
        # A lease counts under its generation alone, as a list does: what its holder read may be of another time.
        lease = b"%b%b%b.%d" % (LEASE, generation, self._process, self._leases)
        keys = [key(user_id) for user_id in user_ids]
        found = await self._read(lambda: self._take_leases(keys=keys, args=[lease, generation, LEASE_MS]))
        if found is None:
            return None
        leased = Leased(lease, [], {}, {})
        for user_id, value in zip(user_ids, found, strict=True):
            if not value:
                leased.ours.append(user_id)
            elif value.startswith(LEASE):
                leased.others[user_id] = value
            else:
                leased.lists[user_id] = memoryview(value)[1 + GENERATION_LENGTH :]
        return leased

    async def fill(self, lease: bytes, generation: bytes, lists: Mapping[str, bytes]) -> int:
        """Store lists that were read under that lease; return how many of them it still held for."""
        args: list[bytes | int] = [lease]
        for packed in lists.values():
            args += [LIST + generation + packed, random.randint(*TTL_MS)]  # noqa: S311  # spreads load, keeps no secret
        keys = [key(user_id) for user_id in lists]
        stored: int = await self._read(lambda: self._fill(keys=keys, args=args)) or 0
        metrics.cache_fills.inc(stored)
        return stored

    async def run(self, script: str, keys: Sequence[bytes], args: Sequence[int]) -> Any:
        """What a script answers that has nothing to do with lists, or None when that cannot be had."""
        return await self._read(lambda: self._redis.register_script(script)(keys=keys, args=args))

    async def plant(self, catalogue_version: int) -> State | None:
        """Begin a generation at that version, if there is none; the one that counts is returned."""
        state = b"%b:%d" % (new_generation(), catalogue_version)
        found = await self._read(lambda: self._redis.set(STATE, state, nx=True, get=True), absent=state)
        return None if found is None else parse_state(found)

    async def invalidate(self, user_ids: Sequence[str]) -> None:
        """Forget the users' lists. To be called after the commit and before the answer."""
        if not user_ids:
            return
        if len(user_ids) <= FEW:
            await self._change(lambda: self._redis.unlink(*map(key, user_ids)))
            return
        # Redis does nothing else while it runs a command, and each has the whole budget.
        for start in range(0, len(user_ids), UNLINKED):
            users = "\n".join(user_ids[start : start + UNLINKED])
            await self._change(partial(self._remove, keys=[USER], args=[users]))
            if not self.available:
                return  # whatever it holds is not read any more

    async def close(self) -> None:
        """Have everyone read from PostgreSQL, and those who have begun otherwise get their answers, until `open`.

        Between a commit and the last invalidation some lists are old and some are new: so nobody sees both.
        """
        await self._change(lambda: self._close(keys=[CLOSED], args=[CLOSED_MS]))
        await asyncio.sleep(2 * self._budget)

    async def stay_closed(self) -> None:
        """Let nobody open it by waiting."""
        await self._change(lambda: self._redis.pexpire(CLOSED, CLOSED_MS))

    async def open(self) -> None:
        """Let lists be read from here again."""
        await self._change(lambda: self._open(keys=[CLOSED]))

    async def announce(self, catalogue_version: int) -> None:
        """Let every process know that the catalogue has reached that version. After the commit, before the answer."""
        args: list[bytes | int] = [new_generation(), catalogue_version]
        await self._change(lambda: self._announce(keys=[STATE], args=args))

    async def renounce(self) -> None:
        """Remove the state: every list stored so far is void, and the catalogue's version is asked of PostgreSQL."""
        await self._change(self._remove_state)

    async def _greet(self, connection: AbstractConnection) -> None:
        """Look whom a new connection reaches: a server that restarted may have old lists from its disk."""
        await connection.on_connect()
        await connection.send_command("INFO", "server")
        run_id = RUN_ID.search(await connection.read_response(disable_decoding=True))
        found = run_id[1] if run_id else None
        if self._run_id not in (None, found):
            self._leave(ConnectionError("it is another server than before, or was restarted"))
        self._run_id = found

    async def _remove_state(self) -> None:
        await self._redis.unlink(STATE)

    async def _read(self, command: Callable[[], Awaitable[Any]], absent: bytes | None = None) -> Any:
        """The command's answer, `absent` when that is nil, or None when it cannot be had."""
        if not self.available:
            return None
        try:
            answer = await self._in_time(command)
        except OutOfMemoryError:
            return None  # Redis is well and merely full: what is not stored is read from PostgreSQL
        except (RedisError, OSError, TimeoutError) as error:
            metrics.redis_failures.inc()
            self._failures += 1
            if self._failures >= FAILURES:
                self._leave(error)
            return None
        self._failures = 0
        if self._untold:  # what answered may be another server than before
            return None
        return absent if answer is None else answer

    async def _change(self, command: Callable[[], Awaitable[object]]) -> None:
        """Run a command that others rely on; when it fails, Redis is not to be trusted until the state was removed."""
        if not self.available:
            self._untold += 1
            return
        try:
            await self._in_time(command)
        except OutOfMemoryError:
            # Only removing is possible. Without the state everyone asks PostgreSQL.
            await self.renounce()
        except (RedisError, OSError, TimeoutError) as error:
            metrics.redis_failures.inc()
            self._leave(error)

    async def _in_time(self, command: Callable[[], Awaitable[object]], seconds: float | None = None) -> object:
        """The command's answer, or TimeoutError when Redis, and not this process, was too slow."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as limit:
            timer: asyncio.Handle

            def late(turns: int) -> None:
                # A busy loop looks at its clock before it has read what lies in its sockets: let it read first.
                nonlocal timer
                if turns:
                    timer = loop.call_soon(late, turns - 1)
                else:
                    limit.reschedule(loop.time())

            timer = loop.call_later(seconds or self._budget, late, TURNS)
            try:
                return await command()
            finally:
                timer.cancel()

    def _leave(self, error: Exception) -> None:
        """Use Redis no more until a probe has come back from it.

        Other processes may fail to invalidate while this one sees nothing but a slow read, so it counts as untold.
        """
        self._untold += 1
        if self.available:
            log.warning("Redis does not answer, reads go to PostgreSQL: %s", str(error) or type(error).__name__)
            metrics.redis_left.inc()
        self.available = False
        metrics.redis_available.set(0)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_SECONDS if self.available else PROBE_SECONDS)
            await self._probe()

    async def _probe(self) -> None:
        """Notice that Redis is away also without traffic, and come back to it only when nothing stale in it counts."""
        was_available, untold = self.available, self._untold
        try:
            await self._in_time(self._redis.ping if untold == 0 else self._remove_state, HEALTH_SECONDS)
        except (RedisError, OSError, TimeoutError) as error:
            metrics.redis_failures.inc()
            self._leave(error)
            return
        # A change that was made while the answer was on its way may have come too late for it: once more.
        if was_available or self._untold != untold:
            return
        self._untold, self._failures, self.available = 0, 0, True
        metrics.redis_available.set(1)
        log.info("Redis answers, reads use it")
