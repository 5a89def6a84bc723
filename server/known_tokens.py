"""Which tokens are good: known to this process for a few seconds, and looked up again while they are used.

A token that was revoked is refused everywhere within STALE_SECONDS, and one that has expired at once. While PostgreSQL
cannot be reached those that are known stay good for a while: what Redis has can still be read.
"""

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine

from db import tokens
from db.clock import ticks
from db.recent import Recent
from resolvers.callers import Caller
from resolvers.errors import Overloaded
from resolvers.gathering import Gathering, Waiting
from resolvers.idempotency import Operations
from server.tokens import Token

log = logging.getLogger(__name__)

# From then on what is known of a token is looked up again, beside the request that uses it; and no request relies on
# what is older than that.
FRESH_SECONDS = 5.0
STALE_SECONDS = 10.0
# But while PostgreSQL cannot be reached: longer than Redis keeps what can be read without it.
OUTAGE_SECONDS = 90.0
# So long a lookup may take: before what is known is stale it has succeeded or failed.
LOOKUP_SECONDS = 4.0
# It was away so recently that it may still be; and before that it is not asked again.
AWAY_SECONDS = 10.0
PAUSE_SECONDS = 1.0
# How often this process notes that a token is used.
NOTED_SECONDS = 60.0
# Tokens that there are, and ids that there are not: who makes up the latter does not crowd out the former.
KNOWN = 20_000
UNKNOWN = 5_000
# What a secret is compared with when there is no such token: it takes no less time.
NO_HASH = bytes(32)
# What there is when PostgreSQL, or a connection to it, is not.
FAILURES = (SQLAlchemyError, OSError, TimeoutError)


@dataclass(slots=True)
class Entry:
    """What was found when a token was looked up."""

    # When the question was sent, by `ticks`.
    asked: float
    # None when there is no such token.
    found: tokens.Token | None
    # Who has it, if it was good then.
    caller: Caller | None = None
    # When it expires.
    until: float = float("inf")
    # When its use was last noted.
    noted: float = field(default=float("-inf"))

    @property
    def age(self) -> float:
        return ticks() - self.asked

    @property
    def good(self) -> bool:
        return self.caller is not None and ticks() < self.until


class KnownTokens:
    def __init__(self, reader: AsyncEngine, operations: Operations) -> None:
        self._reader = reader
        self._operations = operations
        self._known: Recent[str, Entry] = Recent(KNOWN)
        self._unknown: Recent[str, Entry] = Recent(UNKNOWN)
        # Lookups that are under way, which whoever wants the same joins.
        self._asking: dict[str, asyncio.Task[Entry]] = {}
        self._gathered = Gathering(self._look_up)
        # When the last lookup failed; what succeeds forgets it.
        self._failed = float("-inf")
        self._used: set[str] = set()
        self._noting: asyncio.Task[None] | None = None

    def remembered(self, token: Token) -> Caller | None:
        """Who has the token, if that is known without asking and it is good."""
        entry = self._remembered(token.id)
        return None if entry is None else self._matching(token, entry)

    async def caller(self, token: Token) -> Caller | None:
        """Who has the token; None when it is not good. Raises Overloaded when that cannot be found out."""
        return self._matching(token, await self._entry(token.id))

    def recognised(self, token: Token) -> bool:
        """Whether that was found to be somebody's token a while ago, good or not: who shows it does not guess."""
        entry = self._known.find(token.id)
        return (
            entry is not None
            and entry.found is not None
            and entry.age <= OUTAGE_SECONDS
            and hmac.compare_digest(entry.found.hash, token.hash)
        )

    async def good(self, token_id: str) -> bool:
        """Whether the token of that id is still good. Raises Overloaded when that cannot be found out."""
        return (await self._entry(token_id)).good

    @asynccontextmanager
    async def running(self) -> AsyncIterator["KnownTokens"]:
        """At the end what is under way is finished."""
        yield self
        await asyncio.gather(*self._asking.values(), return_exceptions=True)
        if self._noting is not None:
            await self._noting

    def _matching(self, token: Token, entry: Entry) -> Caller | None:
        kept = NO_HASH if entry.found is None else entry.found.hash
        if not hmac.compare_digest(kept, token.hash) or not entry.good:
            return None
        if ticks() - entry.noted > NOTED_SECONDS:
            entry.noted = ticks()
            self._used.add(token.id)
            if self._noting is None:
                self._noting = asyncio.create_task(self._note())
        return entry.caller

    async def _entry(self, token_id: str) -> Entry:
        entry = self._remembered(token_id)
        if entry is None:
            if ticks() - self._failed < PAUSE_SECONDS:
                raise Overloaded
            try:
                # Shielded: a caller that leaves takes the answer from nobody else.
                entry = await asyncio.shield(self._ask(token_id))
            except PoolTimeoutError as error:
                # What is known is too old, and PostgreSQL is not away: a revocation may be there for us to see.
                raise Overloaded from error
            except FAILURES as error:
                entry = self._known.find(token_id)
                if entry is None or entry.age > OUTAGE_SECONDS:
                    raise Overloaded from error
        return entry

    def _remembered(self, token_id: str) -> Entry | None:
        """What is known well enough; what will soon not be is looked up meanwhile."""
        entry = self._known.find(token_id) or self._unknown.find(token_id)
        if entry is None or entry.age < FRESH_SECONDS:
            return entry
        failed = ticks() - self._failed
        if entry.found is None or entry.age > (OUTAGE_SECONDS if failed < AWAY_SECONDS else STALE_SECONDS):
            return None
        if failed > PAUSE_SECONDS:
            self._ask(token_id)
        return entry

    def _ask(self, token_id: str) -> asyncio.Task[Entry]:
        task = self._asking.get(token_id)
        if task is None:
            task = self._asking[token_id] = asyncio.create_task(self._gathered.ask(token_id))
            task.add_done_callback(lambda done: self._asked(token_id, done))
        return task

    def _asked(self, token_id: str, done: asyncio.Task[Entry]) -> None:
        del self._asking[token_id]
        if not done.cancelled():
            done.exception()  # perhaps nobody waited for it

    async def _look_up(self, batch: Waiting[Entry]) -> None:
        asked = ticks()
        try:
            # It shares the catalogue's connection, not those that queries wait for: who is slow to be answered must
            # not keep others from saying who they are.
            async with asyncio.timeout(LOOKUP_SECONDS), self._reader.connect() as conn:
                found = await tokens.by_ids(conn, batch)
        except PoolTimeoutError:
            # That all connections are taken says nothing about PostgreSQL.
            raise
        except FAILURES as error:
            if ticks() - self._failed > AWAY_SECONDS:
                log.warning("tokens cannot be looked up: %r", error)
            self._failed = ticks()
            raise
        self._failed = float("-inf")
        for token_id, answer in batch.items():
            entry = self._kept(token_id, found.get(token_id), asked)
            if not answer.done():
                answer.set_result(entry)

    def _kept(self, token_id: str, found: tokens.Token | None, asked: float) -> Entry:
        before = self._known.find(token_id)
        entry = Entry(asked, found)
        if found is None:
            self._known.forget(token_id)
            self._unknown.keep(token_id, entry)
            return entry
        if before is not None:
            entry.noted = before.noted
        if found.seconds_left is not None:
            entry.until = asked + found.seconds_left
        if found.revoked_at is None:
            entry.caller = Caller(found.name, found.scope, token_id, found.expires_at)
        self._unknown.forget(token_id)
        self._known.keep(token_id, entry)
        return entry

    async def _note(self) -> None:
        try:
            while self._used:
                used, self._used = self._used, set()
                await self._operations.note(partial(tokens.note_use, ids=used))
        except Exception as error:  # noqa: BLE001  # whoever used them has been answered
            log.warning("the use of tokens could not be noted: %r", error)
        finally:
            self._noting = None
