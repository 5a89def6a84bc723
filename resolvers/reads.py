"""Which segments users are in: from Redis where it has the answer, from PostgreSQL where it has not."""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Sequence
from functools import partial

from db import connections
from db.cache import Cache
from db.cache_format import Fetched, State
from db.clock import Clock
from db.connections import Database
from db.memberships import Membership
from db.packed import Packed
from resolvers import facts, metrics
from resolvers.active import active
from resolvers.catalogue import Catalogue
from resolvers.facts import Facts
from resolvers.kept import Keeping
from resolvers.selecting import BATCH, Selecting
from resolvers.waiting import Answer, Missed, One, Waiting, Waits, batches, fail, join, settle, tell

# So many users of one request are asked for by themselves; fewer go with those of other requests.
FEW = 10
# Of those whose lists were read from PostgreSQL so many are answered before others are heard.
HEARD = 12


class Reads:
    def __init__(self, database: Database, cache: Cache, catalogue: Catalogue, clock: Clock, statements: int) -> None:
        self.pool = connections.bare_reader(database, statements)
        self._cache = cache
        self._catalogue = catalogue
        self._keeping = Keeping(catalogue)
        self._clock = clock
        self._selecting = Selecting(self.pool, statements)
        self._tasks: set[asyncio.Task[None]] = set()
        # What is asked for with the next command, and with the next statement; and whose requests began these.
        self._cached: Waiting = {}
        self._latest: Waiting = {}
        self._asking_for_cached = self._asking_for_latest = contextvars.Context()

    async def memberships(self, user_id: str, *, latest: bool = False) -> list[Membership]:
        """The user's active memberships, ordered by slug. Nothing that was acknowledged before the call is missing."""
        return await self.latest(user_id) if latest else self.noted(await self.cached(user_id))

    def cached(self, user_id: str) -> "asyncio.Future[list[Membership]]":
        """The same, asked for at once; whoever gets the answer has it `noted`. To cancel it disturbs nobody else."""
        answer: asyncio.Future[list[Membership]] = asyncio.get_running_loop().create_future()
        self._waiting_for_cached().setdefault(user_id, []).append(answer)
        return answer

    def latest(self, user_id: str) -> "asyncio.Future[list[Membership]]":
        """The same, of PostgreSQL, asked for at once."""
        metrics.bypasses.inc()
        answer: asyncio.Future[list[Membership]] = asyncio.get_running_loop().create_future()
        self._waiting_for_latest().setdefault(user_id, []).append(answer)
        return answer

    def together(self, user_ids: Sequence[str], *, latest: bool) -> Answer:
        """The memberships of each of these users, asked for at once; whoever gets them has them `noted`, too."""
        if len(user_ids) == 1:
            return self._alone(user_ids[0], latest=latest)
        answer = Answer(len(user_ids))
        if latest:
            metrics.bypasses.inc(len(user_ids))
            join(self._waiting_for_latest(), user_ids, answer)
        elif FEW <= len(user_ids) <= BATCH:
            found = partial(self._found_together, user_ids, answer, contextvars.copy_context())
            self._cache.soon(partial(self._look_up_together, user_ids, answer, found))
        else:
            join(self._waiting_for_cached(), user_ids, answer)
        return answer

    def _alone(self, user_id: str, *, latest: bool) -> Answer:
        answer = One()
        if latest:
            metrics.bypasses.inc()
        waiting = self._waiting_for_latest() if latest else self._waiting_for_cached()
        waiting.setdefault(user_id, []).append(answer)
        return answer

    def noted(self, found: list[Membership]) -> list[Membership]:
        """The same memberships, once the request's facts say whether the cache had them."""
        note([found], facts.current())
        return found

    async def finish(self) -> None:
        """Wait for reads that are under way."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.pool.close()

    def _waiting_for_cached(self) -> Waiting:
        if not self._cached:
            self._asking_for_cached = contextvars.copy_context()
            self._cache.soon(self._look_up)
        return self._cached

    def _waiting_for_latest(self) -> Waiting:
        if not self._latest:
            self._asking_for_latest = contextvars.copy_context()
            asyncio.get_running_loop().call_soon(self._read_latest)
        return self._latest

    def _look_up(self) -> None:
        asked, self._cached = self._cached, {}
        for batch in batches(asked):
            try:
                self._cache.find(list(batch), partial(self._found, batch, self._asking_for_cached))
            except UnicodeEncodeError as error:  # no id that was let in has what UTF-8 has not
                fail(batch, error)

    def _look_up_together(
        self, user_ids: Sequence[str], answer: Answer, found: Callable[[Fetched | None], None]
    ) -> None:
        try:
            self._cache.find(user_ids, found)
        except UnicodeEncodeError as error:  # as above
            answer.set_exception(error)

    def _read_latest(self) -> None:
        asked, self._latest = self._latest, {}
        for batch in batches(asked):
            self._start(batch, self._from_postgresql(batch), self._asking_for_latest)

    def _found(self, batch: Waiting, asking: contextvars.Context, fetched: Fetched | None) -> None:
        if fetched is None:
            self._start(_missed(batch), self._from_postgresql(batch), asking)
        elif fetched.state is None or fetched.state.catalogue_version != self._catalogue.version:
            self._start(batch, self._agree(batch, fetched), asking)
        else:
            try:
                missed = self._answer(batch, fetched.values, fetched.state.counting)
            except Exception as error:  # noqa: BLE001  # it is not handled here: every caller that waits gets it
                fail(batch, error)
                return
            if missed:
                self._start(_missed(missed), self._fill(missed, fetched.state), asking)

    def _found_together(
        self,
        user_ids: Sequence[str],
        answer: Answer,
        asking: contextvars.Context,
        fetched: Fetched | None,
    ) -> None:
        """Of many users at once: nearly always Redis has all, and nobody is told of one of them alone."""
        if answer.done():
            return
        if fetched is not None and fetched.state is not None:
            if fetched.state.catalogue_version == self._catalogue.version:
                counting = fetched.state.counting
                found = self._keeping.all_active(user_ids, fetched.values, counting, self._clock.now())
                if found is not None:
                    metrics.hits.inc(len(found))
                    answer.complete(found)
                    return
            # A user may be named twice, and waits once.
            fetched = fetched._replace(values=list(dict(zip(user_ids, fetched.values, strict=True)).values()))
        batch: Waiting = {}
        join(batch, user_ids, answer)
        self._found(batch, asking, fetched)

    async def _agree(self, batch: Waiting, fetched: Fetched) -> None:
        """Know the same segments as Redis has in mind, before its lists are looked at."""
        state = await self._catalogue.agree(self._cache, fetched.state)
        if state is None:
            await self._from_postgresql(_missed(batch))
            return
        # Lists count under the generation that they were fetched with, or not at all.
        missed = self._answer(batch, fetched.values, state.counting) if _same(state, fetched.state) else batch
        if missed:
            await self._fill(_missed(missed), state)

    def _answer(self, batch: Waiting, values: list[bytes | None], counting: bytes) -> Waiting:
        """Answer those whose lists were found in Redis; the others are returned."""
        now, hits = self._clock.now(), 0
        missed: Waiting = {}
        for (user_id, waiting), value in zip(batch.items(), values, strict=True):
            if value is None or not value.startswith(counting):
                missed[user_id] = waiting
                continue
            hits += len(waiting)
            found = self._keeping.active(user_id, value, counting, now)
            if found is None:
                self._start({user_id: waiting}, self._refreshed(user_id, waiting, value[len(counting) :]))
                continue
            for answer in waiting:
                if not answer.done():
                    answer.set_result(found)
        if hits:
            metrics.hits.inc(hits)
        return missed

    async def _refreshed(self, user_id: str, waiting: list[Waits], packed: bytes) -> None:
        await self._catalogue.refresh()
        tell(waiting, active(user_id, packed, self._clock.now(), self._catalogue, anyway=True) or [])

    async def _fill(self, batch: Waiting, state: State) -> None:
        """Read from PostgreSQL, and store for the next, what was not in Redis."""
        entry = await self._cache.entry()
        if entry is None:
            await self._from_postgresql(batch)
            return
        packed = await self._selecting.of_users(list(batch))
        lists = {user_id: packed.lists.get(user_id, b"") for user_id in batch}
        # Redis has it to do while we are answering.
        filled = self._cache.fill(entry, state.generation, lists)
        await self._answer_all(batch, packed)
        await filled

    async def _from_postgresql(self, batch: Waiting) -> None:
        """Read without storing."""
        await self._answer_all(batch, await self._selecting.of_users(list(batch)))

    async def _answer_all(self, batch: Waiting, packed: Packed) -> None:
        await self._catalogue.reach(packed.catalogue_version)
        await self._answer_missed(batch, packed.lists)

    async def _answer_missed(self, batch: Waiting, lists: dict[str, bytes]) -> None:
        now = self._clock.now()
        for number, (user_id, waiting) in enumerate(batch.items(), 1):
            if not number % HEARD:
                # Those who were answered ask their next meanwhile: its look-up is on its way while the others are.
                await asyncio.sleep(0)
            packed = lists.get(user_id, b"")
            found = active(user_id, packed, now, self._catalogue)
            if found is None:
                await self._refreshed(user_id, waiting, packed)
            else:
                tell(waiting, found)

    def _start(
        self, batch: Waiting, work: Coroutine[None, None, None], asking: contextvars.Context | None = None
    ) -> None:
        task = asyncio.create_task(settle(batch, work), context=asking)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def note(found: Sequence[list[Membership]], noted: Facts) -> None:
    """Have a request's facts say of how many users the cache had the memberships."""
    misses = sum([type(each) is Missed for each in found])
    noted.cache_misses += misses
    noted.cache_hits += len(found) - misses


def _missed(batch: Waiting) -> Waiting:
    metrics.misses.inc(sum(map(len, batch.values())))
    return batch


def _same(one: State, other: State | None) -> bool:
    return other is not None and one.generation == other.generation
