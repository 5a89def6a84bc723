"""Running a mutation at most once per key, whatever is retried, raced or cut off."""

import asyncio
import dataclasses
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from itertools import count
from typing import Any

import orjson
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from db import operations
from resolvers.errors import Refused, in_progress, key_reused
from resolvers.places import Places

# What PostgreSQL undoes because of somebody else: nothing was answered yet, so it is simply done again.
SERIALIZATION_FAILURE, DEADLOCK, LOCK_TIMEOUT = "40001", "40P01", "55P03"
ATTEMPTS = 4
# How long a duplicate waits for the first one in this process, which costs nothing. In another process, where it costs
# a connection, it is that connection's lock timeout.
PATIENCE_SECONDS = 10

Outcome = dict[str, Any]
Work = Callable[[AsyncConnection, int], Awaitable[Outcome]]
Committed = Callable[[Outcome], Awaitable[None]]
Turn = Callable[[], AbstractAsyncContextManager[None]]


@dataclass(frozen=True, slots=True)
class Request:
    """One call of a mutation field, as far as its key is concerned."""

    client: str
    key: str
    # The mutation field's name.
    kind: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a mutation that is committed: ids, counts and slugs, the same for every retry."""

    outcome: Outcome
    replayed: bool


class _GivenUpError(Exception):
    """The key was taken when we asked for it, and is not any more."""


def request(client: str, key: str, kind: str, **arguments: object) -> Request:
    """`arguments` are the field's coerced arguments without the key; what the answer selects is no part of it."""
    canonical = orjson.dumps([kind, _plain(arguments)], option=orjson.OPT_SORT_KEYS | orjson.OPT_UTC_Z)
    return Request(client, key, kind, hashlib.sha256(canonical).digest())


class Operations:
    """The mutations of this process that are at work."""

    def __init__(self, writer: AsyncEngine, most: int) -> None:
        self._writer = writer
        # Of those who wait for an answer, and of what is at work, which may outlast them.
        self._callers, self._at_work = Places(most), Places(most)
        self._running: dict[tuple[str, str], tuple[bytes, asyncio.Task[Done]]] = {}

    async def once(
        self, request: Request, work: Work, committed: Committed, turn: Turn = nullcontext, *, caller: str
    ) -> Done:
        """Do `work` in a transaction, unless its key was used: then what came of it the first time is the answer.

        `work` gets the transaction and the operation's id. `committed` runs after the commit and before the answer,
        for replays too: a retry makes up for a first call that died in between. Raises `Refused`, and Overloaded when
        as much is at work as may be, of all or of this caller.

        Work that may have to wait does so for its turn first, without a connection: so it leaves some to others.

        The work goes on when its caller is cancelled. Duplicates that arrive meanwhile wait for it without a
        connection, so a storm of retries of one slow key takes nothing from others.
        """
        with self._callers.one(caller):
            return await self._once(request, work, committed, turn, caller)

    async def _once(self, request: Request, work: Work, committed: Committed, turn: Turn, caller: str) -> Done:
        place = (request.client, request.key)
        while (running := self._running.get(place)) is not None:
            fingerprint, task = running
            done, _ = await asyncio.wait([task], timeout=PATIENCE_SECONDS)
            if not done:
                raise Refused([in_progress()])
            if fingerprint == request.fingerprint:
                return dataclasses.replace(task.result(), replayed=True)
            if not task.cancelled() and task.exception() is None:
                raise Refused([key_reused()])
            # The other request failed and has left the key unused.
        self._at_work.take(caller)
        task = asyncio.create_task(self._run(request, work, committed, turn))
        self._running[place] = (request.fingerprint, task)

        def ended(_: asyncio.Task[Done]) -> None:
            del self._running[place]
            self._at_work.give(caller)

        task.add_done_callback(ended)
        return await asyncio.shield(task)

    async def note(self, write: Callable[[AsyncConnection], Awaitable[bool]]) -> bool:
        """Do a write that needs no key, for doing it again does nothing."""
        async with self._writer.begin() as tx:
            return await write(tx)

    async def finish(self) -> None:
        """Wait for what is at work; its answers may still reach their callers."""
        await asyncio.gather(*(task for _, task in self._running.values()), return_exceptions=True)

    async def _run(self, request: Request, work: Work, committed: Committed, turn: Turn) -> Done:
        async with turn():
            done = await self._persist(request, work)
        await committed(done.outcome)
        return done

    async def _persist(self, request: Request, work: Work) -> Done:
        own: set[int] = set()
        for attempt in count(1):
            try:
                return await self._transact(request, work, own)
            except _GivenUpError:
                # Then it is new. That happens to a key once in its life: at the end of its retention.
                continue
            except DBAPIError as error:
                if not _may_repeat(error, attempt):
                    raise
        raise AssertionError("counting ends only by an answer or an error")

    async def _transact(self, request: Request, work: Work, own: set[int]) -> Done:
        """Claim, effect, history and result: one transaction. `own` collects the operations that were begun here."""
        async with self._writer.begin() as tx:
            operation_id = await _claim(tx, request)
            if operation_id is None:
                recorded = await operations.by_key(tx, request.client, request.key)
                if recorded is None:
                    raise _GivenUpError
                if recorded.fingerprint != request.fingerprint:
                    raise Refused([key_reused()])
                # An operation of our own was committed and only the answer to COMMIT lost: this is its first answer.
                return Done(recorded.result, replayed=recorded.id not in own)
            own.add(operation_id)
            outcome = await work(tx, operation_id)
            await operations.settle(tx, operation_id, outcome)
        return Done(outcome, replayed=False)


async def _claim(tx: AsyncConnection, request: Request) -> int | None:
    try:
        return await operations.claim(tx, request.client, request.kind, request.key, request.fingerprint)
    except DBAPIError as error:
        if sqlstate(error) == LOCK_TIMEOUT:
            raise Refused([in_progress()]) from error
        raise


def _may_repeat(error: DBAPIError, attempt: int) -> bool:
    if sqlstate(error) in (SERIALIZATION_FAILURE, DEADLOCK):
        return attempt < ATTEMPTS
    # The connection was lost, perhaps during COMMIT. The key knows whether it happened; it is asked once.
    return error.connection_invalidated and attempt == 1


def sqlstate(error: DBAPIError) -> str | None:
    state: str | None = getattr(error.orig, "sqlstate", None)
    return state


def _is_default(field: "dataclasses.Field[Any]", value: object) -> bool:
    if field.default_factory is not dataclasses.MISSING:
        return bool(value == field.default_factory())
    return value is field.default or bool(value == field.default)


def _plain(value: object) -> object:
    """The value as JSON has it.

    Fields that have their default are no part of it: a retry must fit when a new version knows more fields.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [(field, getattr(value, field.name)) for field in dataclasses.fields(value)]
        return {field.name: _plain(inner) for field, inner in fields if not _is_default(field, inner)}
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        if set(map(type, value)) <= {str}:
            return value  # a hundred thousand ids need no second look
        return [_plain(item) for item in value]
    return value
