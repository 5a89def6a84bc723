"""Two mutations and a reader, each on a process of its own, in any order of their statements and commands."""

import asyncio
import dataclasses
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from background import execute
from exploring import FINDING, explored, within
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from operations import ERRORS, SEGMENTS, differences, memberships
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine
from stepping import Actor, Stage, pausing, stage

from db import connections, journal
from db.pipeline import Script
from resolvers import idempotency
from resolvers.idempotency import Commit, Committed, Done, Turn
from server.settings import Settings

LISTS = f"added updated removed unchanged {ERRORS}"
SEGMENT = f"segment {{ id }} {ERRORS}"
USER = "ann"
# What is done to the segment A, and the user in it.
MUTATIONS = {
    "add": f'changeUserSegments(input: {{userId: "{USER}", add: ["A"]}}, idempotencyKey: $key) {{ {LISTS} }}',
    "extend": f'changeUserSegments(input: {{userId: "{USER}", add: ["A"], ttlDays: 2}}, idempotencyKey: $key) '
    f"{{ {LISTS} }}",
    "remove": f'changeUserSegments(input: {{userId: "{USER}", remove: ["A"]}}, idempotencyKey: $key) {{ {LISTS} }}',
    "add many": f'addUsersToSegment(input: {{slug: "A", userIds: ["{USER}", "bob"]}}, idempotencyKey: $key) '
    f"{{ {LISTS} }}",
    "remove many": f'removeUsersFromSegment(input: {{slug: "A", userIds: ["{USER}", "bob"]}}, idempotencyKey: $key) '
    f"{{ {LISTS} }}",
    "delete": f'deleteSegment(slug: "A", idempotencyKey: $key) {{ {SEGMENT} }}',
    "create": f'createSegment(input: {{slug: "A"}}, idempotencyKey: $key) {{ {SEGMENT} }}',
}
# Twice the same one: with one key.
SCENES = [
    ("extend", "delete"),
    ("add many", "delete"),
    ("remove", "delete"),
    ("add", "remove"),
    ("add", "remove many"),
    ("extend", "add many"),
    ("add", "add"),
    ("add many", "add many"),
    ("delete", "delete"),
    ("delete", "create"),
    ("extend", "extend"),
]
EVENTS = f"""
    SELECT o.idempotency_key, e.action IN ('ADDED', 'EXPIRY_CHANGED')
    FROM (
        SELECT action, at, operation_id FROM membership_events WHERE user_id = '{USER}'
        UNION ALL
        SELECT 'SEGMENT_DELETED', s.deleted_at, s.deleted_by
        FROM segments AS s JOIN memberships AS m ON m.segment_id = s.id AND m.user_id = '{USER}'
        WHERE s.deleted_at IS NOT NULL AND s.deleted_by IS NOT NULL
    ) AS e JOIN operations AS o ON o.id = e.operation_id ORDER BY e.at
"""
LATE = """SELECT e.user_id FROM membership_events AS e JOIN segments AS s ON s.id = e.segment_id
          WHERE e.action = 'ADDED' AND e.at >= s.deleted_at"""
DELETE_ALL = """
    WITH raised AS (UPDATE catalogue SET version = version + 1 RETURNING version)
    UPDATE segments SET deleted_at = clock_timestamp(), version = raised.version FROM raised WHERE deleted_at IS NULL
"""
FORGET = """
    WITH a AS (DELETE FROM memberships), b AS (DELETE FROM membership_events), c AS (DELETE FROM operations),
         d AS (DELETE FROM segments), e AS (DELETE FROM tasks) SELECT
"""
ROUNDS = 100
EXAMPLES, STEPS = 12, 8
# It ends with the first that finds what was planted.
MOST = 40
READER = 2
# How it is told that a read has not seen what it should have.
STALE = "^CACHED|^.Asked"
# Where it matters most who comes first: what they may do next when others go on.
NEXT = "the next"
POINTS = {
    "read": ["fill", "fetch", "fill", "its end"],
    "of one": ["place 4", "its end", "place 1", "place 3", "invalidate", NEXT, "its end"],
    "of many": ["its end", "__aexit__", "invalidate", NEXT, "its end"],
    "of a segment": ["its end", "__aexit__", "announce", NEXT, "its end"],
}
KINDS = dict.fromkeys(("add", "extend", "remove"), "of one") | dict.fromkeys(("create", "delete"), "of a segment")
# Neither the queues nor the rows' locks keep a deletion away.
WEAK_LOCKS = {
    "pg_advisory_xact_lock_shared(hashtext('segments'), queue)": "queue",
    "ORDER BY id FOR SHARE": "ORDER BY id FOR KEY SHARE",
}
UNCHECKED = Script("""
for i = 2, #KEYS do
  redis.call('SET', KEYS[i], ARGV[2 * i - 1], 'PX', ARGV[2 * i])
end
return {#KEYS - 1, ARGV[2]}
""")


@dataclass(slots=True)
class Asked:
    """A mutation or a read, from when to when it was under way; and what came of it."""

    began: int
    # None: a read.
    key: str | None = None
    ended: int | None = None
    answer: Any = None


@dataclass(frozen=True)
class World:
    loop: asyncio.AbstractEventLoop
    stage: Stage
    engine: AsyncEngine
    redis: Redis
    counts: Counter[str]

    async def empty(self) -> None:
        for actor in self.stage.actors:
            await actor.rest()
        await execute(self.engine, DELETE_ALL)
        await self.redis.flushall()
        for actor in self.stage.actors:
            await actor.client.ask(SEGMENTS, id=USER)
        await execute(self.engine, FORGET)


Staged = Callable[..., Awaitable[World]]


class Race(RuleBasedStateMachine):
    def __init__(self, world: World, scenes: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self.world, self.scenes = world, scenes
        world.counts["examples"] += 1
        self.example = world.counts["examples"]
        # Counts what begins and ends.
        self.ticks = 0
        self.mutations: list[tuple[str, str]] = []
        self.asked: tuple[list[Asked], ...] = ([], [], [])
        self.blocked: set[int] = set()
        self.last: int | None = None
        # In which they come to an end.
        self.order = [0, 1, READER]

    @initialize(
        data=st.data(),
        member=st.booleans(),
        cached=st.sampled_from([False, False, True]),
        order=st.permutations([0, 1, READER]),
    )
    def begin(self, data: st.DataObject, member: bool, cached: bool, order: list[int]) -> None:
        self.order = order
        one, other = data.draw(st.sampled_from(self.scenes))
        keys = [f"race-{self.example:05}-{name}" for name in ("one", "one" if one == other else "other")]
        self.mutations = [*zip((one, other), keys, strict=True)]
        within(self.world.loop, self.prepared(member=member, cached=cached))

    async def prepared(self, *, member: bool, cached: bool) -> None:
        await self.world.empty()
        client = self.world.stage.actors[0].client
        for name in ["create", "add"] if member else ["create"]:
            await client.ask(document(name), key=f"before-{self.example:05}-{name}")
        if cached:
            await client.ask(SEGMENTS, id=USER)

    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        actors = self.world.stage.actors
        able = [READER, *[who for who in (0, 1) if not (self.asked[who] and actors[who].finished)]]
        able = [who for who in able if who not in self.blocked]
        # Not the same one again: that would be no change of turns.
        who = data.draw(st.sampled_from([who for who in able if who != self.last] or able))
        self.last = who
        kind = "read" if who == READER else KINDS.get(self.mutations[who][0], "of many")
        within(self.world.loop, self.going(who, data.draw(st.sampled_from(POINTS[kind]))))

    async def going(self, who: int, until: str) -> None:
        """Let one of them do a step at least, and so much, unless it has to wait for another."""
        actor = self.world.stage.actors[who]
        while who not in self.blocked and await self.step(who):
            if until in (NEXT, actor.at) or actor.finished:
                return

    async def step(self, who: int) -> bool:
        actor = self.world.stage.actors[who]
        if not self.asked[who] or (who == READER and actor.finished):
            await self.start(who, actor)
        elif actor.finished:
            return False
        else:
            await actor.let_go()
        self.blocked = {number - 1 for number in await self.world.stage.settled()}
        self.world.counts["steps"] += 1
        self.world.counts["blocked"] += len(self.blocked)
        self.note()
        return True

    async def start(self, who: int, actor: Actor) -> None:
        self.ticks += 1
        if who == READER:
            self.asked[who].append(Asked(self.ticks))
            await actor.begin(SEGMENTS, {"id": USER})
        else:
            name, key = self.mutations[who]
            self.asked[who].append(Asked(self.ticks, key))
            await actor.begin(document(name), {"key": key})

    def note(self) -> None:
        """What has been answered by now."""
        for actor, asked in zip(self.world.stage.actors, self.asked, strict=True):
            if asked and asked[-1].ended is None and actor.answered:
                assert actor.asking is not None
                self.ticks += 1
                asked[-1].ended = self.ticks
                answer = actor.asking.result()
                assert "errors" not in answer, answer
                (asked[-1].answer,) = answer["data"].values()

    def teardown(self) -> None:
        if self.mutations:
            within(self.world.loop, self.checked())

    async def checked(self) -> None:
        await self.finish()
        await self.check_members()
        self.check_replies()
        await self.check_reads()

    async def finish(self) -> None:
        """Let everybody come to an end, one after the other as far as they do not have to wait.

        Who waits for each other in a circle is let out by PostgreSQL.
        """
        for _ in range(ROUNDS):
            for who in self.order:
                while who not in self.blocked and not (self.asked[who] and self.world.stage.actors[who].finished):
                    await self.step(who)
            if all(self.asked) and all(actor.finished for actor in self.world.stage.actors):
                return
            if len(self.blocked) > 1:
                await asyncio.sleep(0.05)
                self.blocked = {number - 1 for number in await self.world.stage.settled()}
        raise AssertionError([(actor.number, actor.gates, actor.asking) for actor in self.world.stage.actors])

    async def check_members(self) -> None:
        assert await differences(self.world.engine) == []
        assert await execute(self.world.engine, LATE) == []
        inside = (await self.states())[-1][1]
        for actor in self.world.stage.actors:
            latest = await memberships(actor.client, USER, "LATEST")
            assert [each["segment"]["slug"] for each in latest] == (["A"] if inside else [])
            for _ in range(2):
                assert await memberships(actor.client, USER) == latest, "CACHED"

    def check_replies(self) -> None:
        """One effect for each key, and the same answer for everybody who sent it."""
        (one,), (other,) = self.asked[0], self.asked[1]
        done = [each.answer for each in (one, other) if not each.answer["userErrors"]]
        if one.key == other.key:
            assert [{**each, "replayed": None} for each in done[1:]] == [
                {**each, "replayed": None} for each in done[:1]
            ]
            assert sum(not each["replayed"] for each in done) == 1
            assert len(done) == 2
        else:
            assert not any(each["replayed"] for each in done)
        for each in (one, other):
            codes = [error["code"] for error in each.answer["userErrors"]]
            assert codes in ([], ["SEGMENT_NOT_FOUND"], ["SEGMENT_EXISTS"])

    async def check_reads(self) -> None:
        """Each saw what there was at a moment while it was under way."""
        states = await self.states()
        mutations = [each for asked in self.asked[:READER] for each in asked]
        for read in self.asked[READER]:
            assert read.ended is not None
            before = {each.key for each in mutations if each.ended is not None and each.ended < read.began}
            never = {each.key for each in mutations if each.began > read.ended}
            never -= {each.key for each in mutations if each.began < read.ended}
            first = max(n for n, (key, _) in enumerate(states) if key not in self.keys or key in before)
            last = max(n for n, (key, _) in enumerate(states) if key not in never)
            allowed = {inside for _, inside in states[first : last + 1]}
            assert (read.answer["segments"] != []) in allowed, (read, mutations, states)
            self.world.counts["reads"] += 1

    @property
    def keys(self) -> set[str]:
        return {key for _, key in self.mutations}

    async def states(self) -> list[tuple[str, bool]]:
        """Whether the user was in the segment, from each change of it on; and by which key."""
        return [("", False), *[(key, inside) for key, inside in await execute(self.world.engine, EVENTS)]]


def document(name: str) -> str:
    return f"mutation ($key: String!) {{ {MUTATIONS[name]} }}"


@pytest.fixture
async def staged(
    settings: Settings, prepared_url: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Staged]:
    """Begins a stage, where some of the product's statements are replaced."""
    engine = connections.writer(prepared_url, pool_size=6)
    async with AsyncExitStack() as ending:

        async def staging(replaced: dict[str, str] | None = None) -> World:
            await pausing(engine, replaced or {})
            own = dataclasses.replace(settings, database_url=prepared_url)
            made = await ending.enter_async_context(stage(own, engine, monkeypatch, actors=3))
            return World(asyncio.get_running_loop(), made, engine, redis, Counter())

        yield staging
    await engine.dispose()


async def test_any_order_of_two_mutations_and_a_reader_is_right(staged: Staged) -> None:
    world = await staged()
    await explored(lambda: Race(world, SCENES), EXAMPLES, STEPS)
    assert world.counts["reads"] >= EXAMPLES


@pytest.mark.soak
@pytest.mark.timeout(4 * 3_600)
async def test_any_order_of_two_mutations_and_a_reader_is_right_for_long(
    staged: Staged, record_property: Callable[[str, object], None]
) -> None:
    world = await staged()
    await explored(lambda: Race(world, SCENES), int(os.environ.get("MODEL_EXAMPLES", "300")), STEPS)
    record_property("printed", f"two mutations and a reader: {dict(world.counts)}")


async def test_the_race_finds_a_planted_lock_that_lets_additions_slip_in_behind_a_deletion(staged: Staged) -> None:
    world = await staged(WEAK_LOCKS)
    with pytest.raises(AssertionError, match="comes after the deletion"):
        await explored(lambda: Race(world, [("extend", "delete")]), MOST, STEPS, FINDING)


async def test_the_race_finds_a_planted_fill_that_looks_at_no_journal(
    staged: Staged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "FILL", UNCHECKED)
    world = await staged()
    with pytest.raises(AssertionError, match=STALE):
        await explored(lambda: Race(world, [("extend", "add many")]), MOST, STEPS, FINDING)


@pytest.mark.soak
async def test_the_race_finds_a_planted_invalidation_before_the_commit(
    staged: Staged, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(commit: Commit, committed: Committed, turn: Turn) -> Done:
        async with turn():
            await committed({})
            return await commit()

    monkeypatch.setattr(idempotency, "_run", run)
    world = await staged()
    with pytest.raises(AssertionError, match=STALE):
        await explored(lambda: Race(world, [("extend", "add many")]), MOST, STEPS, FINDING)
