"""The running service against a dictionary: whatever is done in whatever order, both have the same members."""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pytest
from background import execute
from conftest import Client, Serve
from exploring import FINDING, explored, within
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from modelling import End, Model, Seen, Segment
from operations import database_clock, differences
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine
from test_bulk import ADD, CHANGES, REMOVE

from db import connections, endings, partitions, tasks
from db.cache import Cache
from db.files import Files
from db.history import BEGINNING
from db.tables import TaskKind
from jobs import cleanup
from jobs.attempt import Attempt
from jobs.purge import Retention, by_hand
from jobs.verification import verify

T = TypeVar("T")
USERS = ["ann", "bob", "c:d", "émile"]
SLUGS = ["A", "B", "C", "D"]
ERRORS = "replayed userErrors { code path }"
CREATE = f"""mutation ($slug: String!, $percent: Float, $key: String!) {{
  createSegment(input: {{slug: $slug, rolloutPercent: $percent}}, idempotencyKey: $key) {{
    segment {{ id slug }} {ERRORS} }} }}"""
ROLL_OUT = f"""mutation ($slug: String!, $percent: Float, $key: String!) {{
  updateSegment(slug: $slug, input: {{rolloutPercent: $percent}}, idempotencyKey: $key) {{
    segment {{ id slug }} {ERRORS} }} }}"""
DELETE = f"""mutation ($slug: String!, $key: String!) {{
  deleteSegment(slug: $slug, idempotencyKey: $key) {{ segment {{ id slug }} {ERRORS} }} }}"""
CHANGE = f"""mutation ($input: ChangeUserSegmentsInput!, $key: String!) {{
  changeUserSegments(input: $input, idempotencyKey: $key) {{ added updated removed unchanged {ERRORS} }} }}"""
MEMBERSHIP = "{ segment { slug } addedAt expiresAt source }"
SEEN = f"""cached: memberships {MEMBERSHIP} latest: memberships(freshness: LATEST) {MEMBERSHIP}
  {" ".join(f'{slug}: isIn(slug: "{slug}")' for slug in SLUGS)}"""
READ = f"query ($ids: [ID!]!) {{ users(ids: $ids) {{ {SEEN} }} }}"
READ_ALL = f"""query ($ids: [ID!]!) {{ users(ids: $ids) {{
  {SEEN} history(first: 100) {{ nodes {{ slug action source }} pageInfo {{ hasNextPage }} }} }} }}"""
# What the model's clock jumps by, and what ends of memberships are ahead of it: no sum of the former is within ten
# minutes of a sum of both, so it makes no difference how long a test takes.
JUMPS = [100, 1_700]
AHEAD = [50, 550, 2_050]
DAY = 1_440
ALL = -1
RETENTION = Retention(24, 7, 30, None)
TOLERANCE = timedelta(minutes=10)
EXAMPLES, STEPS = 4, 8
RETRYABLE = {"OVERLOADED", "TIMEOUT"}
ATTEMPTS = 6
KILL = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
          WHERE datname = current_database() AND pid <> pg_backend_pid()"""
# As if everything had happened so much earlier.
PASS = [
    f"UPDATE {table} SET " + ", ".join(f"{column} = {column} - make_interval(mins => :minutes)" for column in columns)
    for table, columns in {
        "segments": ("created_at", "updated_at", "deleted_at", "cleaned_at"),
        "memberships": ("added_at", "expires_at"),
        "membership_events": ("at", "expires_at"),
        "operations": ("at",),
        "rollout_changes": ("at",),
        "exclusions": ("excluded_at", "ended_at"),
    }.items()
]
# As other processes see deletions. Versions and ids go on rising: nobody has to notice that they have been here before.
DELETE_ALL = """
    WITH raised AS (UPDATE catalogue SET version = version + 1 RETURNING version)
    UPDATE segments SET deleted_at = clock_timestamp(), version = raised.version FROM raised WHERE deleted_at IS NULL
"""
FORGET = """
    WITH a AS (DELETE FROM memberships), b AS (DELETE FROM membership_events), c AS (DELETE FROM operations),
         d AS (DELETE FROM segments), e AS (DELETE FROM rollout_changes), f AS (DELETE FROM exclusions),
         g AS (DELETE FROM tasks), h AS (DELETE FROM job_runs) SELECT
"""
SLUG, USER = st.sampled_from(SLUGS), st.sampled_from(USERS)
PERCENT = st.sampled_from([None, 0.0, 12.5, 50.0, 100.0])
TERM = st.sampled_from([("ever", 0), *[("at", ahead) for ahead in AHEAD], ("days", 1), ("days", 2)])
ADDED = st.sampled_from([True, True, False])


@dataclass(frozen=True)
class World:
    """The service, in two processes' worth of it, and what stands beneath."""

    loop: asyncio.AbstractEventLoop
    clients: tuple[Client, Client]
    engine: AsyncEngine
    redis: Redis
    files: Files
    # Of things that happened, how often.
    counts: Counter[str]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return within(self.loop, work)

    async def empty(self) -> None:
        await execute(self.engine, DELETE_ALL)
        await self.redis.flushall()
        for client in self.clients:
            await client.ask(READ, ids=USERS)
        await execute(self.engine, FORGET)

    async def kill(self) -> None:
        async with self.engine.begin() as tx:
            await tx.exec_driver_sql(KILL)
        self.counts["kills"] += 1


@dataclass(frozen=True)
class Sent:
    """A mutation that took effect."""

    query: str
    variables: dict[str, Any]
    payload: dict[str, Any]
    minute: int


class Service(RuleBasedStateMachine):
    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.model = Model()
        self.sent: list[Sent] = []
        # Of refused mutations: the next one takes it.
        self.unused: list[str] = []
        self.killing = False
        self.numbers = count(1)
        world.counts["examples"] += 1
        self.run(world.empty())
        self.start = self.run(database_clock(world.engine))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.world.run(work)

    # What is done to segments.

    @initialize(percent=PERCENT, term=TERM)
    def begin(self, percent: float | None, term: tuple[str, int]) -> None:
        self.create("A", None)
        self.create("B", percent)
        self.add_users("A", set(USERS[:3]), term)

    @rule(slug=SLUG, percent=PERCENT)
    def create(self, slug: str, percent: float | None) -> None:
        if slug in self.model.live:
            self.refused(["SEGMENT_EXISTS"], CREATE, slug=slug, percent=percent)
            return
        segment_id = self.done(CREATE, slug=slug, percent=percent)["segment"]["id"]
        ((seed,),) = self.run(
            execute(self.world.engine, "SELECT seed FROM segments WHERE slug = :slug AND deleted_at IS NULL", slug=slug)
        )
        self.model.live[slug] = Segment(segment_id, seed)
        self.model.live[slug].roll_out(percent)

    @rule(slug=SLUG, clean=st.booleans())
    def delete(self, slug: str, clean: bool) -> None:
        if self.known(DELETE, [slug], slug=slug):
            segment = self.model.live.pop(slug)
            assert self.done(DELETE, slug=slug)["segment"] == {"id": segment.id, "slug": slug}
            self.world.counts["deleted"] += 1
        if clean:
            self.run(cleaning(self.world))

    @rule(slug=SLUG, percent=PERCENT)
    def roll_out(self, slug: str, percent: float | None) -> None:
        if self.known(ROLL_OUT, [slug], slug=slug, percent=percent):
            self.done(ROLL_OUT, slug=slug, percent=percent)
            self.model.live[slug].roll_out(percent)

    # What is done to memberships.

    @rule(user=USER, wishes=st.dictionaries(SLUG, ADDED, min_size=1, max_size=3), term=TERM)
    def change(self, user: str, wishes: dict[str, bool], term: tuple[str, int]) -> None:
        given, end = self.until(term)
        input = {"userId": user, **self.lists(wishes), **given}
        if not self.known(CHANGE, wishes, input=input):
            return
        expected: dict[str, list[str]] = {"added": [], "updated": [], "removed": [], "unchanged": []}
        for slug in [*input["add"], *input["remove"]]:
            became = self.model.add(slug, user, end) if wishes[slug] else self.model.remove(slug, user)
            expected[became].append(slug)
        payload = self.done(CHANGE, input=input)
        assert {name: payload[name] for name in expected} == expected

    @rule(slug=SLUG, users=st.sets(USER, min_size=1), term=TERM)
    def add_users(self, slug: str, users: set[str], term: tuple[str, int]) -> None:
        given, end = self.until(term)
        input = {"slug": slug, "userIds": sorted(users), **given}
        if self.known(ADD, [slug], input=input):
            self.counted(Counter(self.model.add(slug, user, end) for user in users), ADD, input=input)

    @rule(slug=SLUG, users=st.sets(USER, min_size=1))
    def remove_users(self, slug: str, users: set[str]) -> None:
        input = {"slug": slug, "userIds": sorted(users)}
        if self.known(REMOVE, [slug], input=input):
            self.counted(Counter(self.model.remove(slug, user) for user in users), REMOVE, input=input)

    @rule(wishes=st.dictionaries(USER, st.dictionaries(SLUG, ADDED, min_size=1, max_size=2), min_size=1), term=TERM)
    def change_many(self, wishes: dict[str, dict[str, bool]], term: tuple[str, int]) -> None:
        given, end = self.until(term)
        changes = [{"userId": user, **self.lists(each), **given} for user, each in wishes.items()]
        slugs = [slug for each in wishes.values() for slug in each]
        if self.known(CHANGES, slugs, input={"changes": changes}):
            became = Counter(
                self.model.add(slug, user, end) if added else self.model.remove(slug, user)
                for user, each in wishes.items()
                for slug, added in each.items()
            )
            self.counted(became, CHANGES, input={"changes": changes})

    @rule(user=USER, slug=SLUG, wrong=st.sampled_from(["unknown", "past", "both", "nothing"]))
    def ask_for_what_cannot_be(self, user: str, slug: str, wrong: str) -> None:
        wrongs: dict[str, tuple[dict[str, Any], str]] = {
            "unknown": ({"add": ["NONE"], "remove": list(self.model.live)}, "SEGMENT_NOT_FOUND"),
            "past": ({"add": ["A"], "expiresAt": "2001-01-01T00:00:00Z"}, "INVALID"),
            "both": ({"add": [slug], "remove": [slug]}, "CONFLICTING_CHANGE"),
            "nothing": ({"add": [], "remove": []}, "INVALID"),
        }
        input, code = wrongs[wrong]
        if wrong != "past" or "A" in self.model.live:
            self.refused([code], CHANGE, input={"userId": user, **input})

    # What happens anyway.

    @rule(minutes=st.sampled_from(JUMPS), purged=st.sampled_from([0, 1, 2, ALL]))
    def let_time_pass(self, minutes: int, purged: int) -> None:
        self.run(passing(self.world, minutes))
        self.model.now += minutes
        if purged == ALL:
            self.run(by_hand(self.world.engine, self.world.files, RETENTION))
            # Keys are kept for a day.
            self.sent = [sent for sent in self.sent if self.model.now - sent.minute <= DAY]
        elif purged:
            self.run(purging(self.world, purged))

    @rule(what=st.sampled_from(["flush", "kill", "kill in the middle"]))
    def disturb(self, what: str) -> None:
        if what == "flush":
            self.run(flushing(self.world))
        elif what == "kill":
            self.run(self.world.kill())
        else:
            # Of the next mutation.
            self.killing = True

    @rule(data=st.data(), query=st.sampled_from([ADD, CHANGE, None]))
    def use_a_key_again(self, data: st.DataObject, query: str | None) -> None:
        """For the same, or for something else."""
        if not self.sent:
            return
        sent = data.draw(st.sampled_from(self.sent))
        if query is None:
            self.replay(sent)
            return
        input = {"slug": "A", "userIds": ["eve"]} if query == ADD else {"userId": "eve", "add": ["A"]}
        payload = self.asked(query, {"input": input, "key": sent.variables["key"]})
        assert [error["code"] for error in payload["userErrors"]] == ["IDEMPOTENCY_KEY_REUSED"]

    # What is so at all times.

    @invariant()
    def everybody_sees_what_the_model_has(self) -> None:
        expected = [self.model.seen(user) for user in USERS]
        for client, query in zip(self.world.clients, (READ_ALL, READ), strict=True):
            answer, _ = self.run(self.settled(client, query, {"ids": USERS}))
            for user, seen, found in zip(USERS, expected, answer["users"], strict=True):
                assert self.memberships(found["latest"]) == seen, user
                assert found["cached"] == found["latest"], user
                assert {slug for slug in SLUGS if found[slug]} == {each.slug for each in seen}, user
                if query == READ_ALL:
                    assert not found["history"]["pageInfo"]["hasNextPage"]
                    assert folded(found["history"]["nodes"]) == {(each.slug, each.source) for each in seen}, user

    @invariant()
    def history_folds_to_memberships(self) -> None:
        assert self.run(differences(self.world.engine)) == []

    @invariant()
    def the_last_mutation_is_done(self) -> None:
        self.world.counts["steps"] += 1
        if self.sent:
            self.replay(self.sent[-1])

    def teardown(self) -> None:
        for sent in self.sent:
            self.replay(sent)
        self.everybody_sees_what_the_model_has()
        report = self.run(verify(self.world.engine, self.world.files, task_days=30))
        assert [example for check in report.checks for example in check.examples] == []

    # How all that is asked for.

    def until(self, term: tuple[str, int]) -> tuple[dict[str, Any], End]:
        """A term as the service is told of it, and when it ends."""
        kind, amount = term
        if kind == "ever":
            return {}, End(None)
        if kind == "days":
            return {"ttlDays": amount}, End(self.model.now + amount * DAY, next(self.numbers))
        instant = self.start + timedelta(minutes=amount)
        return {"expiresAt": instant.isoformat()}, End(self.model.now + amount)

    def lists(self, wishes: dict[str, bool]) -> dict[str, list[str]]:
        return {
            "add": [slug for slug, added in wishes.items() if added],
            "remove": [slug for slug, added in wishes.items() if not added],
        }

    def known(self, query: str, slugs: Any, **variables: Any) -> bool:
        """Whether all the segments are there; otherwise the mutation was refused."""
        unknown = {slug for slug in slugs if slug not in self.model.live}
        if unknown:
            self.refused(["SEGMENT_NOT_FOUND"] * len(unknown), query, **variables)
        return not unknown

    def counted(self, expected: Counter[str], query: str, **variables: Any) -> None:
        payload = self.done(query, **variables)
        names = ("added", "updated", "removed", "unchanged")
        assert [payload[name] for name in names] == [expected[name] for name in names]

    def done(self, query: str, **variables: Any) -> dict[str, Any]:
        variables["key"] = self.unused.pop() if self.unused else self.new_key()
        payload = self.asked(query, variables)
        assert payload["userErrors"] == []
        self.sent.append(Sent(query, variables, {**payload, "replayed": True}, self.model.now))
        return payload

    def refused(self, codes: list[str], query: str, **variables: Any) -> None:
        key = self.new_key()
        payload = self.asked(query, {**variables, "key": key})
        assert [error["code"] for error in payload["userErrors"]] == codes
        self.unused.append(key)
        self.world.counts["refused"] += 1

    def replay(self, sent: Sent) -> None:
        assert self.asked(sent.query, sent.variables, replay=True) == sent.payload
        self.world.counts["replayed"] += 1

    def new_key(self) -> str:
        return f"key-{self.world.counts['examples']:05}-{next(self.numbers):05}"

    def asked(self, query: str, variables: dict[str, Any], *, replay: bool = False) -> dict[str, Any]:
        """The payload of a mutation, which one of the processes was asked for until it answered."""
        client = self.world.clients[next(self.numbers) % 2]
        answer, attempts = self.run(self.settled(client, query, variables))
        (payload,) = answer.values()
        assert isinstance(payload, dict)
        assert replay or attempts > 1 or not payload["replayed"]
        return payload

    async def settled(self, client: Client, query: str, variables: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """What came of it in the end, and how often it was tried."""
        for attempt in count(1):
            posting = asyncio.create_task(client.post(query, variables))
            if self.killing and "key" in variables:
                self.killing = False
                await self.world.kill()
            answer = await posting
            if "errors" not in answer:
                return answer["data"], attempt
            codes = {error["extensions"]["code"] for error in answer["errors"]}
            assert codes <= RETRYABLE, answer
            assert attempt < ATTEMPTS, answer
            self.world.counts["retried"] += 1
        raise AssertionError("counting ends only by an answer or an error")

    def memberships(self, found: list[dict[str, Any]]) -> list[Seen]:
        return [Seen(each["segment"]["slug"], each["source"], self.minute(each["expiresAt"])) for each in found]

    def minute(self, instant: str | None) -> int | None:
        if instant is None:
            return None
        return (datetime.fromisoformat(instant) - self.start) // TOLERANCE * 10 + self.model.now


def folded(newest_first: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """Which memberships history says there are: slugs, each with why."""
    last: dict[tuple[str, str], str] = {}
    for event in reversed(newest_first):
        last[event["slug"], event["source"]] = event["action"]
    return {membership for membership, action in last.items() if action in ("ADDED", "EXPIRY_CHANGED")}


async def passing(world: World, minutes: int) -> None:
    for statement in PASS:
        await execute(world.engine, statement, minutes=minutes)
    # What is there knows other instants.
    await flushing(world)


async def flushing(world: World) -> None:
    await world.redis.flushall()
    world.counts["flushed"] += 1


async def purging(world: World, limit: int) -> None:
    end = await database_clock(world.engine)
    async with world.engine.begin() as tx:
        world.counts["purged"] += (await endings.purge(tx, begin=BEGINNING, end=end, limit=limit)).rows


async def cleaning(world: World) -> None:
    """As a worker does with the oldest cleanup there is."""
    async with world.engine.begin() as tx:
        claim = await tasks.claim(tx, [TaskKind.SEGMENT_CLEANUP])
    if claim is not None:
        nothing: Any = None  # of what other kinds of work need
        await cleanup.clean(Attempt(claim, world.engine, world.engine, world.engine, world.files, nothing, nothing))
        world.counts["cleaned"] += 1


@pytest.fixture
async def world(serve: Serve, prepared_url: str, redis: Redis, tmp_path: Path) -> AsyncIterator[World]:
    engine = connections.writer(prepared_url, pool_size=4)
    async with engine.begin() as tx:
        await partitions.make(tx, behind=6)
    files = Files(str(tmp_path / "files"))
    files.prepare()
    async with serve(database_url=prepared_url) as one, serve(database_url=prepared_url) as other:
        yield World(asyncio.get_running_loop(), (one, other), engine, redis, files, Counter())
    await engine.dispose()


async def test_whatever_is_done_is_what_a_dictionary_has(world: World) -> None:
    await explored(lambda: Service(world), EXAMPLES, STEPS)
    assert world.counts["replayed"] > EXAMPLES


@pytest.mark.soak
@pytest.mark.timeout(4 * 3_600)
async def test_whatever_is_done_is_what_a_dictionary_has_for_long(
    world: World, record_property: Callable[[str, object], None]
) -> None:
    examples, steps = os.environ.get("MODEL_EXAMPLES", "300"), os.environ.get("MODEL_STEPS", "40")
    await explored(lambda: Service(world), int(examples), int(steps))
    record_property("printed", f"the service and its model: {dict(world.counts)}")


async def test_the_model_finds_a_planted_change_that_is_not_invalidated(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(_cache: Cache, _user_ids: object) -> None:
        pass

    monkeypatch.setattr(Cache, "invalidate", nothing)
    with pytest.raises(AssertionError):
        await explored(lambda: Service(world), EXAMPLES, STEPS, FINDING)
