"""What Redis holds, and the one rule of using it: it may vanish at any moment, and nothing gets wrong.

One key per user: the packed memberships. And one for all: the *state*, which is the version of the catalogue and a
*generation*. A list counts only under the generation that it was stored under. A process that could not invalidate, or
that has seen Redis away, removes the state before it trusts Redis again: whatever was stored before is then of an old
generation and no longer read by anyone.

What was read before somebody else's change is not stored after it: db/journal.py says how.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import OutOfMemoryError

from db import metrics
from db.beside import beside
from db.cache_format import (
    ANNOUNCE,
    CLOSE,
    CLOSED,
    OPEN,
    STATE,
    USER,
    USER_CHANNEL,
    Fetched,
    State,
    new_generation,
    parse_run_id,
    parse_state,
)
from db.journal import Journal, beginning, filling, removing
from db.news import News
from db.pipeline import Answered, Part, Pipeline, Script, once
from db.redis_connections import connections
from db.removals import Removals

log = logging.getLogger(__name__)

# Keys that one command removes; and from how many on their users are sent together.
REMOVED = 2_000
FEW = 100
# A change waits for so many budgets: others go on reading what it removes, and who is merely slow is told in time.
PATIENCE = 6
# Consecutive reads that fail before Redis is left alone.
FAILURES = 3
# Whoever closes it and dies has not closed it for ever.
CLOSED_MS = 60_000
PROBE_SECONDS = 0.1
HEALTH_SECONDS = 0.25


class Cache:
    """Every command that is sent to Redis.

    No method raises because of Redis: what cannot be had within the budget is None, and the caller asks PostgreSQL.
    """

    def __init__(self, url: str, budget_ms: int) -> None:
        self._budget = budget_ms / 1000
        self.pipeline = Pipeline(connections(url, self._greet))
        self.news = News(self.pipeline, self._budget)
        self._failures = 0
        # What they failed of last: the end of a connection is one failure, however many wait for it.
        self._failed_of: Exception | None = None
        # The state as it was found last, and what it says.
        self._found = b"", parse_state(b":-1")
        self._journal = Journal()
        self._removals = Removals(self.pipeline, self._journal, PATIENCE * self._budget, self._change_failed)
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
            await self.pipeline.close()

    def find(self, user_ids: Sequence[str], take: Callable[[Fetched | None], None]) -> None:
        """Have `take` called with the state and the users' lists, which one command asks for."""

        def found(values: list[bytes | None] | None) -> None:
            take(None if values is None or values[1] is not None else self._fetched(values))

        self._read(("MGET", STATE, CLOSED, *[USER + user_id for user_id in user_ids]), found)

    async def entry(self) -> bytes | None:
        """An entry of the journal: what is read from now on may be stored if no other of its user follows."""
        entry = self._journal.entry
        if entry is None:
            entry = await self._answer(*beginning())
            if entry is not None:
                self._journal.note(entry)
        return entry

    def fill(self, entry: bytes, generation: bytes, lists: Mapping[str, bytes]) -> "asyncio.Future[int]":
        """Store lists that were read after these two were found, of those not changed since, and tell how many.

        They are on their way when this returns.
        """
        filled: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def take(answer: list[Any] | None) -> None:
            stored = 0
            if answer is not None:
                stored, last = answer
                self._journal.note(last)
                metrics.cache_fills.inc(stored)
                metrics.cache_fills_refused.inc(len(lists) - stored)
            if not filled.done():
                filled.set_result(stored)

        self._read(filling(entry, generation, lists), take)
        self.pipeline.flush()
        return filled

    def soon(self, join: Callable[[], None]) -> None:
        """Call it just before the next write to Redis: what it asks for is part of that."""
        self.pipeline.soon(join)

    def run(self, script: Script, keys: list[Part], args: list[Part], take: Answered) -> None:
        """Have `take` called with what a script answers that has nothing to do with lists, or with None."""
        self._read((script, keys, args), take)

    async def plant(self, catalogue_version: int) -> State | None:
        """Begin a generation at that version, if there is none; the one that counts is returned."""
        state = b"%b:%d" % (new_generation(), catalogue_version)
        found = await self._answer("SET", STATE, state, "NX", "GET")
        return None if found is None else parse_state(found or state)

    async def invalidate(self, user_ids: Sequence[str]) -> None:
        """Forget the users' lists, and tell who watches them. To be called after the commit and before the answer."""
        if len(user_ids) <= FEW:
            self.news.of_users(user_ids)
            await self.forget(user_ids)
        else:
            await self._remove(user_ids, USER_CHANNEL)

    async def forget(self, user_ids: Sequence[str]) -> None:
        """Forget the lists of users whom somebody else has changed, who may not have got to it yet."""
        if len(user_ids) > FEW:
            await self._remove(user_ids, "")
        elif user_ids and self.available:
            await self._removals.remove(user_ids)
        elif user_ids:
            await self._leave_untold()

    async def _remove(self, user_ids: Sequence[str], channel: str) -> None:
        # Redis does nothing else while it runs a command, and each has the whole budget.
        for start in range(0, len(user_ids), REMOVED):
            await self._change(*removing(user_ids[start : start + REMOVED], channel))
            if not self.available:
                return  # whatever it holds is not read any more

    async def close(self) -> None:
        """Have everyone read from PostgreSQL, and those who have begun otherwise get their answers, until `open`.

        Between a commit and the last invalidation some lists are old and some are new: so nobody sees both.
        """
        await self._change(CLOSE, [CLOSED], [CLOSED_MS])
        await asyncio.sleep(2 * self._budget)

    async def stay_closed(self) -> None:
        """Let nobody open it by waiting."""
        await self._change("PEXPIRE", CLOSED, CLOSED_MS)

    async def open(self) -> None:
        """Let lists be read from here again."""
        await self._change(OPEN, [CLOSED], [])

    async def announce(self, catalogue_version: int) -> None:
        """Let every process know that the catalogue has reached that version. After the commit, before the answer."""
        self.news.of_segments()
        await self._change(ANNOUNCE, [STATE], [new_generation(), catalogue_version])

    async def renounce(self) -> None:
        """Remove the state: every list stored so far is void, and the catalogue's version is asked of PostgreSQL."""
        await self._change("UNLINK", STATE)

    async def _greet(self, connection: AbstractConnection) -> None:
        """Look whom a new connection reaches: a server that restarted may have old lists from its disk."""
        await connection.on_connect()
        await connection.send_command("INFO", "server")
        found = parse_run_id(await connection.read_response(disable_decoding=True))
        if self._run_id not in (None, found):
            self._leave(ConnectionError("it is another server than before, or was restarted"))
        self._run_id = found

    def _fetched(self, values: list[bytes | None]) -> Fetched:
        state = values[0]
        if state is None:
            return Fetched(None, values[2:])
        if state != self._found[0]:
            self._found = state, parse_state(state)
        return Fetched(self._found[1], values[2:])

    async def _answer(self, *command: Any) -> Any:
        """The command's answer, b"" when that is nil, or None when it cannot be had."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._read(command, once(answer))
        return await answer

    def _read(self, command: tuple[Any, ...], take: Answered) -> None:
        def received(reply: Any) -> None:
            if not isinstance(reply, Exception):
                self._failures = 0
                try:
                    # What answered may be another server than before.
                    take(None if self._untold else b"" if reply is None else reply)
                except Exception:
                    # Whatever somebody else has written there: whoever waits is not to wait for ever.
                    log.exception("what Redis has answered cannot be understood")
                    take(None)
                return
            if not isinstance(reply, OutOfMemoryError):  # else it is merely full: then what is not stored is read
                self._failed(reply)
            take(None)

        # A change whose writer has not waited for it any longer must not be overtaken by what we read.
        if self.available and not self.pipeline.is_behind(self._budget):
            self._send(command, received, self._budget)
        else:
            take(None)

    def _failed(self, error: Exception) -> None:
        metrics.redis_failures.inc()
        self._failures += error is not self._failed_of
        self._failed_of = error
        if self._failures >= FAILURES:
            self._leave(error)

    async def _change(self, *command: Any) -> None:
        """Do what others rely on; if it cannot be done, Redis is not trusted until the state is gone."""
        if not self.available:
            await self._leave_untold()
            return
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        # Whoever has asked may have left, and others rely on it all the same.
        def received(reply: Any) -> None:
            if isinstance(reply, Exception) and not isinstance(reply, OutOfMemoryError):
                self._change_failed(reply)
            if not answer.done():
                answer.set_result(reply)

        self._send(command, received, PATIENCE * self._budget)
        reply = await answer
        if isinstance(reply, OutOfMemoryError):
            # Only removing is possible. Without the state everyone asks PostgreSQL.
            await self.renounce()

    async def _leave_untold(self) -> None:
        self._untold += 1
        # Perhaps it is back, and only the next look would tell: others may have been reading from it all the time.
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._send(("UNLINK", STATE), once(answer), PATIENCE * self._budget)
        await answer

    def _change_failed(self, error: Exception) -> None:
        metrics.redis_failures.inc()
        self._leave(error)

    def _send(self, command: tuple[Any, ...], take: Answered, seconds: float) -> None:
        if isinstance(command[0], Script):
            script, keys, args = command
            self.pipeline.evaluate(script, keys, args, take, seconds)
        else:
            self.pipeline.send(command, take, seconds)

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
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._send(("PING",) if untold == 0 else ("UNLINK", STATE), once(answer), HEALTH_SECONDS)
        if isinstance(error := await answer, Exception):
            metrics.redis_failures.inc()
            self._leave(error)
            return
        # A change that was made while the answer was on its way may have come too late for it: once more.
        if was_available or self._untold != untold:
            return
        self._untold, self._failures, self.available = 0, 0, True
        metrics.redis_available.set(1)
        log.info("Redis answers, reads use it")
