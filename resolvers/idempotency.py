"""Running a mutation at most once per key, whatever is retried, raced or cut off."""

import asyncio
import dataclasses
import hashlib
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import cache, partial
from itertools import count
from typing import Any, NamedTuple

import orjson
from asyncpg import PostgresError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from db import operations
from db.bare import Pool
from db.wire import ConnectionLost
from resolvers.errors import Refused, in_progress, key_reused
from resolvers.places import Places

# What PostgreSQL undoes because of somebody else: nothing was answered yet, so it is simply done again.
SERIALIZATION_FAILURE, DEADLOCK, LOCK_TIMEOUT = "40001", "40P01", "55P03"
ATTEMPTS = 4
# How long a duplicate waits for the first one in this process, which costs nothing. In another process, where it costs
# a connection, it is that connection's lock timeout.
PATIENCE_SECONDS = 10
# What JSON has as we have it.
AS_IT_IS = frozenset({str, int, bool, type(None)})

Outcome = dict[str, Any]
# What a mutation does, in a transaction and with its operation's id.
Work = Callable[[AsyncConnection, int], Awaitable[Outcome]]
# The same, and the claim of its key, by one statement on a connection of the pool, which keeps what attempt it is.
Statement = Callable[["Request", Pool, int], Awaitable["Done"]]
Committed = Callable[[Outcome], Awaitable[None]]
# One attempt at it.
Commit = Callable[[], Awaitable["Done"]]
Turn = Callable[[], AbstractAsyncContextManager[None]]


class Request(NamedTuple):
    """One call of a mutation field, as far as its key is concerned."""

    client: str
    key: str
    # The mutation field's name.
    kind: str
    fingerprint: bytes


class Done(NamedTuple):
    """What came of a mutation that is committed: ids, counts and slugs, the same for every retry."""

    outcome: Outcome
    replayed: bool


# What came of a request, or why nothing did.
Came = Done | Exception
Outcomes = dict[Request, Came]


class _GivenUpError(Exception):
    """The key was taken when we asked for it, and is not any more."""


def request(client: str, key: str, kind: str, **arguments: object) -> Request:
    """`arguments` are the field's coerced arguments without the key; what the answer selects is no part of it."""
    canonical = orjson.dumps([kind, _plain(arguments)], option=orjson.OPT_SORT_KEYS | orjson.OPT_UTC_Z)
    return Request(client, key, kind, hashlib.sha256(canonical).digest())


class Operations:
    """The mutations of this process that are at work."""

    def __init__(self, writer: AsyncEngine, changes: Pool, most: int) -> None:
        self._writer, self._changes = writer, changes
        # Of those who wait for an answer, and of what is at work, which may outlast them.
        self._callers, self._at_work = Places(most), Places(most)
        # By client and key, with the request's fingerprint.
        self._running: dict[tuple[str, str], tuple[bytes, asyncio.Task[Came]]] = {}

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
        own: set[int] = set()
        return await self._once(request, partial(self._transact, request, work, own), committed, turn, caller)

    def once_by(
        self, request: Request, statement: Statement, committed: Committed, turn: Turn = nullcontext, *, caller: str
    ) -> Coroutine[Any, Any, Done]:
        """The same for what one statement does, its key included."""
        # Each process its own, forked ones too.
        attempt = random.getrandbits(63)  # it tells attempts apart, and opens nothing
        return self._once(request, partial(statement, request, self._changes, attempt), committed, turn, caller)

    async def _once(self, request: Request, commit: Commit, committed: Committed, turn: Turn, caller: str) -> Done:
        self._callers.take(caller)
        try:
            place = (request.client, request.key)
            while (running := self._running.get(place)) is not None:
                done = await _same(request, *running)
                if done is not None:
                    return done
            self._at_work.take(caller)
            loop = asyncio.get_running_loop()
            # Whoever has asked may leave it, which is nothing to the work.
            answer: asyncio.Future[Done] = loop.create_future()
            task = loop.create_task(self._work(place, commit, committed, turn, caller, answer))
            self._running[place] = (request.fingerprint, task)
            return await answer
        finally:
            self._callers.give(caller)

    async def _work(
        self,
        place: tuple[str, str],
        commit: Commit,
        committed: Committed,
        turn: Turn,
        caller: str,
        answer: "asyncio.Future[Done]",
    ) -> Came:
        """Do it, and tell whoever waits; and let the key and the place go."""
        try:
            done = await _run(commit, committed, turn)
        except Exception as error:  # noqa: BLE001  # not handled here: whoever waits gets it
            if not answer.done():
                answer.set_exception(error)
            return error
        except BaseException:
            answer.cancel()
            raise
        finally:
            del self._running[place]
            self._at_work.give(caller)
        if not answer.done():
            answer.set_result(done)
        return done

    async def note(self, write: Callable[[AsyncConnection], Awaitable[bool]]) -> bool:
        """Do a write that needs no key, for doing it again does nothing."""
        async with self._writer.begin() as tx:
            return await write(tx)

    async def finish(self) -> None:
        """Wait for what is at work; its answers may still reach their callers."""
        await asyncio.gather(*(task for _, task in self._running.values()), return_exceptions=True)

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


async def _run(commit: Commit, committed: Committed, turn: Turn) -> Done:
    async with turn():
        done = await _persist(commit)
    await committed(done.outcome)
    return done


async def _persist(commit: Commit) -> Done:
    for attempt in count(1):
        try:
            return await commit()
        except _GivenUpError:
            # Then it is new. That happens to a key once in its life: at the end of its retention.
            continue
        except (DBAPIError, PostgresError, ConnectionLost) as error:
            if not _may_repeat(error, attempt):
                raise
    raise AssertionError("counting ends only by an answer or an error")


async def _same(request: Request, fingerprint: bytes, task: "asyncio.Task[Came]") -> Done | None:
    """What comes of the request that is at work with the same key; None when it has left the key unused."""
    ended, _ = await asyncio.wait([task], timeout=PATIENCE_SECONDS)
    if not ended:
        raise Refused([in_progress()])
    if fingerprint != request.fingerprint:
        if task.cancelled() or isinstance(task.result(), Exception):
            return None
        raise Refused([key_reused()])
    came = task.result()
    if isinstance(came, Exception):
        raise came
    return came._replace(replayed=True)


async def _claim(tx: AsyncConnection, request: Request) -> int | None:
    try:
        return await operations.claim(tx, request.client, request.kind, request.key, request.fingerprint)
    except DBAPIError as error:
        if sqlstate(error) == LOCK_TIMEOUT:
            raise Refused([in_progress()]) from error
        raise


def _may_repeat(error: Exception, attempt: int) -> bool:
    if sqlstate(error) in (SERIALIZATION_FAILURE, DEADLOCK):
        return attempt < ATTEMPTS
    # The connection was lost, perhaps during COMMIT. The key knows whether it happened; it is asked once.
    lost = isinstance(error, ConnectionLost) or (isinstance(error, DBAPIError) and error.connection_invalidated)
    return lost and attempt == 1


def sqlstate(error: Exception) -> str | None:
    """What PostgreSQL calls the error, whoever has passed it on."""
    state: str | None = getattr(getattr(error, "orig", error), "sqlstate", None)
    return state


def _plain(value: object) -> object:
    """The value as JSON has it.

    Fields that have their default are no part of it: a retry must fit when a new version knows more fields.
    """
    kind: type = type(value)
    if kind in AS_IT_IS:
        return value
    if isinstance(value, list):
        if AS_IT_IS.issuperset(map(type, value)):
            return value  # a hundred thousand ids need no second look
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    defaults = _defaults(kind)
    if defaults is None:
        return value
    plain = {}
    for name, default in defaults:
        inner = getattr(value, name)
        if inner is not default and inner != default:
            plain[name] = inner if type(inner) in AS_IT_IS else _plain(inner)
    return plain


@cache  # of the inputs that there are, and of what is in them
def _defaults(kind: type) -> Sequence[tuple[str, object]] | None:
    """Each field's default; of one without, what no value is equal to. None: it is no dataclass."""
    if not dataclasses.is_dataclass(kind):
        return None
    return [
        (field.name, field.default if field.default_factory is dataclasses.MISSING else field.default_factory())
        for field in dataclasses.fields(kind)
    ]
