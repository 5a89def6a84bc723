"""Which segments users are in: from Redis where it has the answer, from PostgreSQL where it has not."""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from db import memberships
from db.cache import Cache
from db.cache_format import Leased, State
from db.clock import NEVER, Clock
from db.memberships import EXCLUDED, Membership, MembershipSource, Packed
from resolvers import facts, gathering, metrics
from resolvers.catalogue import Catalogue
from resolvers.gathering import Gathering, settle

# How long a reader waits for one in another process that is just reading the same list, before it reads for itself.
WAITS = (0.005, 0.01, 0.02)

Waiting = gathering.Waiting[list[Membership]]


class FromCache(list[Membership]):
    """Memberships that the cache had."""


class Reads:
    def __init__(self, reader: AsyncEngine, cache: Cache, catalogue: Catalogue, clock: Clock, statements: int) -> None:
        self._reader = reader
        self._cache = cache
        self._catalogue = catalogue
        self._clock = clock
        # Statements at a time; while all are under way the next misses gather into one.
        self._statements = asyncio.Semaphore(statements)
        self._tasks: set[asyncio.Task[None]] = set()
        # Leases of this process, and their fills: a reader that meets one joins it.
        self._fills: dict[bytes, asyncio.Future[Packed]] = {}
        self._cached = Gathering(self._from_cache)
        self._latest = Gathering(self._from_postgresql)

    async def memberships(self, user_id: str, *, latest: bool = False) -> list[Membership]:
        """The user's active memberships, ordered by slug. Nothing that was acknowledged before the call is missing."""
        if latest:
            metrics.bypasses.inc()
            return await self._latest.ask(user_id)
        found = await self._cached.ask(user_id)
        noted = facts.current()
        if isinstance(found, FromCache):
            noted.cache_hits += 1
            metrics.hits.inc()
        else:
            noted.cache_misses += 1
            metrics.misses.inc()
        return found

    async def finish(self) -> None:
        """Wait for reads that are under way."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _from_cache(self, batch: Waiting) -> None:
        fetched = await self._cache.fetch(list(batch)) if self._cache.available else None
        if fetched is None:
            await self._from_postgresql(batch)
            return
        state = fetched.state
        if state is None or state.catalogue_version != self._catalogue.version:
            state = await self._catalogue.agree(self._cache, state)
        # Lists count under the generation that they were fetched with, or not at all.
        counts = state is not None and _same(state, fetched.state)
        missed: Waiting = {}
        for (user_id, answer), packed in zip(batch.items(), fetched.lists, strict=True):
            if counts and packed is not None:
                await self._answer(user_id, answer, packed, FromCache)
            else:
                missed[user_id] = answer
        if missed and state is not None:
            self._start(missed, self._fill(missed, state))
        elif missed:
            await self._from_postgresql(missed)

    async def _fill(self, batch: Waiting, state: State) -> None:
        """Read from PostgreSQL, and store for the next, what was not in Redis."""
        leased = await self._cache.take_leases(list(batch), state.generation)
        if leased is None:
            await self._from_postgresql(batch)
            return
        for user_id, packed in leased.lists.items():
            await self._answer(user_id, batch[user_id], packed)
        metrics.lease_waits.inc(len(leased.others))
        joined: dict[bytes, Waiting] = {}
        for user_id, lease in leased.others.items():
            joined.setdefault(lease, {})[user_id] = batch[user_id]
        for lease, waiting in joined.items():
            self._start(waiting, self._join(waiting, lease, state))
        if leased.ours:
            await self._read_and_store({user_id: batch[user_id] for user_id in leased.ours}, leased, state)

    async def _read_and_store(self, batch: Waiting, leased: Leased, state: State) -> None:
        reading = self._fills[leased.lease] = asyncio.get_running_loop().create_future()
        try:
            packed = await self._read(list(batch))
            reading.set_result(packed)
            await self._answer_all(batch, packed)
            lists = {user_id: packed.lists.get(user_id, b"") for user_id in batch}
            await self._cache.fill(leased.lease, state.generation, lists)
        except Exception as error:
            if not reading.done():
                reading.set_exception(error)
                reading.exception()
            raise
        finally:
            reading.cancel()  # without effect when it is done
            del self._fills[leased.lease]

    async def _join(self, batch: Waiting, lease: bytes, state: State) -> None:
        """Wait for whoever holds the lease.

        The lease was still there after these callers began: no change that they must see has been acknowledged since
        its holder began to read, or it would have been removed.
        """
        if (reading := self._fills.get(lease)) is not None:
            await self._answer_all(batch, await asyncio.shield(reading))
            return
        for wait in WAITS:
            await asyncio.sleep(wait)
            fetched = await self._cache.fetch(list(batch))
            if fetched is None or fetched.state is None or not _same(fetched.state, state):
                break
            for (user_id, answer), packed in zip(list(batch.items()), fetched.lists, strict=True):
                if packed is not None:
                    await self._answer(user_id, answer, packed)
                    del batch[user_id]
            if not batch:
                return
        await self._from_postgresql(batch)

    async def _from_postgresql(self, batch: Waiting) -> None:
        """Read without storing; the next batch is gathered meanwhile, unless all statements are taken."""
        await self._statements.acquire()
        try:
            self._start(batch, self._read_and_answer(batch))
        finally:
            self._statements.release()

    async def _read_and_answer(self, batch: Waiting) -> None:
        await self._answer_all(batch, await self._read(list(batch)))

    async def _read(self, user_ids: Sequence[str]) -> Packed:
        async with self._statements:
            try:
                return await self._select(user_ids)
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                return await self._select(user_ids)  # the server restarted: the pool has new connections now

    async def _select(self, user_ids: Sequence[str]) -> Packed:
        async with self._reader.connect() as conn:
            return await memberships.of_users(conn, user_ids)

    async def _answer_all(self, batch: Mapping[str, "asyncio.Future[list[Membership]]"], packed: Packed) -> None:
        await self._catalogue.reach(packed.catalogue_version)
        for user_id, answer in batch.items():
            await self._answer(user_id, answer, packed.lists.get(user_id, b""))

    async def _answer(
        self,
        user_id: str,
        answer: "asyncio.Future[list[Membership]]",
        packed: bytes | memoryview,
        found: type[list[Membership]] = list,
    ) -> None:
        if not all(self._catalogue.knows(segment_id) for segment_id, _, _ in memberships.unpacked(packed)):
            await self._catalogue.refresh()
        if not answer.done():
            answer.set_result(found(self._active(user_id, packed)))

    def _active(self, user_id: str, packed: bytes | memoryview) -> list[Membership]:
        now, active, decided = self._clock.now(), [], set()
        for segment_id, added, expires in memberships.unpacked(packed):
            if expires > now:
                segment = self._catalogue.segment(segment_id)
                if segment is not None:
                    active.append(Membership(segment, added, expires))
                    decided.add(segment_id)
            elif expires == EXCLUDED:
                decided.add(segment_id)
        for segment_id, rollout in self._catalogue.rollouts.items():
            if segment_id not in decided and (since := rollout.since(user_id)) is not None:
                active.append(Membership(rollout.segment, since, NEVER, MembershipSource.ROLLOUT))
        active.sort(key=_slug)
        return active

    def _start(self, batch: Waiting, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(settle(batch, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _same(one: State, other: State | None) -> bool:
    return other is not None and one.generation == other.generation


def _slug(membership: Membership) -> str:
    return membership.segment.slug
