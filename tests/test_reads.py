"""The read path: fast where the cache has the answer, and true everywhere."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from conftest import Client, Serve
from operations import UPDATE, change, create, database_clock, delete, generation, memberships, new_key, slugs, state
from redis.asyncio import Redis
from slow_readers import begun, slow_reader
from sqlalchemy import Engine, event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from db import connections
from db.bare import Pool
from db.cache import FEW, Cache
from db.clock import Clock
from db.journal import JOURNAL, JOURNAL_MS, LOOKED_AT, NAMED
from resolvers.catalogue import Catalogue
from resolvers.reads import Reads
from server.embedded import Servers


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often PostgreSQL was asked for memberships, and how often for the segments."""
    counted: Counter[str] = Counter()

    def count(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        if "string_agg" in statement:
            counted["memberships"] += 1
        elif "catalogue_version" in statement:
            counted["catalogue"] += 1

    async def fetch(pool: Pool, *values: object) -> Any:
        count(None, None, pool.statement.text)
        return await real(pool, *values)

    event.listen(Engine, "before_cursor_execute", count)
    real = Pool.fetch
    monkeypatch.setattr(Pool, "fetch", fetch)
    yield counted
    event.remove(Engine, "before_cursor_execute", count)


async def sneak_in(engine: AsyncEngine, user_id: str, segment_id: int) -> None:
    """Add a member behind the application's back, so that what answers from the cache can be told."""
    async with engine.begin() as tx:
        await tx.execute(
            text("INSERT INTO memberships (user_id, segment_id, added_at) VALUES (:user_id, :segment_id, now())"),
            {"user_id": user_id, "segment_id": segment_id},
        )


async def test_the_second_read_comes_from_the_cache_and_latest_does_not(client: Client, engine: AsyncEngine) -> None:
    await create(client, "A", "B")
    await change(client, 7, add=["A"])
    assert await slugs(client, 7) == ["A"]
    await sneak_in(engine, "7", 2)
    assert await slugs(client, 7) == ["A"]
    assert await slugs(client, 7, "LATEST") == ["A", "B"]
    # And it has refreshed nothing.
    assert await slugs(client, 7) == ["A"]


async def test_that_a_user_has_no_segments_is_cached_too(client: Client, engine: AsyncEngine) -> None:
    await create(client, "A")
    assert await slugs(client, "nobody") == []
    await sneak_in(engine, "nobody", 1)
    assert await slugs(client, "nobody") == []
    assert await slugs(client, "nobody", "LATEST") == ["A"]


async def test_a_cached_membership_is_the_same_as_the_stored_one(client: Client) -> None:
    await create(client, "B", "A")
    await change(client, 7, add=["A"], expiresAt="2099-05-05T05:05:05.123456Z")
    await change(client, 7, add=["B"])
    stored = await memberships(client, 7, "LATEST")
    assert [m["segment"]["slug"] for m in stored] == ["A", "B"]
    assert await memberships(client, 7) == stored
    assert await memberships(client, 7) == stored


async def test_an_acknowledged_change_is_seen_by_the_next_read_on_another_process(client: Client, serve: Serve) -> None:
    await create(client, "A", "B")
    async with serve() as other:
        for _ in range(50):
            assert await slugs(other, 7) == []
            await change(client, 7, add=["A"])
            assert await slugs(other, 7) == ["A"]
            assert await slugs(client, 7) == ["A"]
            await change(other, 7, remove=["A"])
            assert await slugs(client, 7) == []


async def test_a_segment_that_another_process_created_is_known_at_once(client: Client, serve: Serve) -> None:
    async with serve() as other:
        for number in range(20):
            assert len(await slugs(other, 7)) == number
            await create(client, f"S{number:02}")
            await change(client, 7, add=[f"S{number:02}"])
            assert len(await slugs(other, 7)) == number + 1


async def test_a_deleted_segment_is_gone_from_a_cached_read_at_once(client: Client, serve: Serve) -> None:
    await create(client, "A", "B")
    await change(client, 7, add=["A", "B"])
    async with serve() as other:
        assert await slugs(other, 7) == ["A", "B"]
        await delete(client, "A")
        assert await slugs(other, 7) == ["B"]
        answer = await other.ask('{ user(id: 7) { isIn(slug: "A") memberships { segment { slug } } } }')
        assert answer["user"] == {"isIn": False, "memberships": [{"segment": {"slug": "B"}}]}


async def test_what_a_segment_says_about_itself_is_current_in_cached_reads(client: Client, serve: Serve) -> None:
    await create(client, "A")
    await change(client, 7, add=["A"])
    query = "{ user(id: 7) { segments { description updatedAt } } }"
    async with serve() as other:
        await other.ask(query)
        payload = await client.ask(UPDATE, slug="A", input={"description": "new"}, key=new_key())
        updated = payload["updateSegment"]["segment"]
        assert (await other.ask(query))["user"]["segments"] == [
            {"description": "new", "updatedAt": updated["updatedAt"]}
        ]


async def test_an_expiry_that_passes_while_cached_ends_the_membership_on_the_next_read(
    client: Client, engine: AsyncEngine
) -> None:
    await create(client, "A", "B")
    ends = datetime.now(UTC) + timedelta(seconds=1.5)
    await change(client, 7, add=["A"], expiresAt=ends.isoformat())
    await change(client, 7, add=["B"])
    assert await slugs(client, 7) == ["A", "B"]
    while await database_clock(engine) < ends:
        found = await slugs(client, 7)
        assert found == ["A", "B"] or await database_clock(engine) >= ends - timedelta(milliseconds=50)
        await asyncio.sleep(0.02)
    assert await slugs(client, 7) == ["B"]
    answer = await client.ask('{ user(id: 7) { isIn(slug: "A") } }')
    assert answer["user"]["isIn"] is False


async def test_a_hundred_users_of_one_query_take_one_command_and_one_statement(
    client: Client, redis: Redis, statements: Counter[str]
) -> None:
    await create(client, "A")
    await slugs(client, "warm")
    await redis.config_resetstat()
    statements.clear()
    ids = [str(number) for number in range(100)]
    query = 'query ($ids: [ID!]!) { users(ids: $ids) { segments { slug } isIn(slug: "A") memberships { addedAt } } }'
    await client.ask(query, ids=ids)
    assert statements == {"memberships": 1}
    assert (await redis.info("commandstats"))["cmdstat_mget"]["calls"] == 1
    await client.ask(query, ids=ids)
    assert statements == {"memberships": 1}
    assert (await redis.info("commandstats"))["cmdstat_mget"]["calls"] == 2


@asynccontextmanager
async def reading(servers: Servers) -> AsyncIterator[Reads]:
    """Reads of a process of its own, which nothing is in front of."""
    reader, cache, clock = (
        connections.reader(servers.database_url, pool_size=2),
        Cache(servers.redis_url, 5_000),
        Clock(),
    )
    catalogue = Catalogue(reader, clock)
    await catalogue.refresh()
    async with cache.running():
        reads = Reads(servers.database_url, cache, catalogue, clock, statements=1)
        yield reads
        await reads.finish()
    await reader.dispose()


@pytest.mark.parametrize("kind", ["cold", "hot", "latest"])
async def test_a_reader_who_leaves_disturbs_nobody(
    client: Client, servers: Servers, statements: Counter[str], kind: str
) -> None:
    await create(client, "A")
    await change(client, 7, add=["A"])
    async with reading(servers) as reads:
        ask = reads.latest if kind == "latest" else reads.cached
        if kind == "hot":
            await asyncio.gather(ask("7"), ask("8"))
        statements.clear()
        leaving, staying, other, left_alone = ask("7"), ask("7"), ask("8"), ask("9")
        leaving.cancel()
        left_alone.cancel()
        assert [m.segment.slug for m in await staying] == ["A"]
        assert await other == []
        assert leaving.cancelled()
        assert statements["memberships"] == (1 if kind != "hot" else statements["memberships"])
        # And whoever leaves while it is read.
        leaving, staying = ask("7"), ask("7")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        leaving.cancel()
        assert [m.segment.slug for m in await staying] == ["A"]


async def test_a_thousand_and_more_users_of_one_instant_are_all_answered(client: Client, servers: Servers) -> None:
    await create(client, "A", "B")
    await change(client, "u-1500", add=["B", "A"])
    async with reading(servers) as reads:
        for _ in range(2):  # from PostgreSQL, and from Redis
            found = await asyncio.gather(*(reads.cached(f"u-{n}") for n in range(2_500)))
            assert {n: [m.segment.slug for m in each] for n, each in enumerate(found) if each} == {1500: ["A", "B"]}


async def test_a_cache_that_holds_nonsense_fails_the_read_and_no_other(
    client: Client, servers: Servers, redis: Redis
) -> None:
    await create(client, "A")
    async with reading(servers) as reads:
        await reads.cached("7")
        counting = await generation(redis)
        await redis.set("segmentql:user:7", b"V" + counting + b"nonsense")
        with pytest.raises(Exception, match="requires a buffer of a multiple"):
            await reads.cached("7")
        await redis.unlink("segmentql:user:7")
        assert await reads.cached("7") == []


async def test_a_herd_of_readers_of_one_cold_user_shares_a_few_statements(
    serve: Serve, redis: Redis, statements: Counter[str]
) -> None:
    async with serve(redis_budget_ms=5_000) as client, serve(redis_budget_ms=5_000) as other:
        await create(client, "A")
        await change(client, 7, add=["A"])
        await asyncio.gather(slugs(client, "warm"), slugs(other, "warm"))
        await redis.unlink("segmentql:user:7")
        statements.clear()
        found = await asyncio.gather(*(slugs((client, other)[n % 2], 7) for n in range(200)))
    assert found == [["A"]] * 200
    # Of each process as many as may be under way at a time, and one for all who have come meanwhile.
    assert statements["memberships"] <= 2 * (3 + 1)


async def used(client: Client, redis: Redis) -> bytes:
    """The generation of a Redis that was read from; there is a segment A."""
    await create(client, "A")
    await slugs(client, "warm")
    return await generation(redis)


async def test_a_fill_that_began_before_a_commit_is_refused_after_it(
    client: Client, servers: Servers, redis: Redis
) -> None:
    """A slow reader in another process: it read before the commit, and wants to store after the acknowledgement."""
    counting = await used(client, redis)
    async with slow_reader(servers.redis_url) as slow:
        for _ in range(20):
            await redis.unlink("segmentql:user:7")
            entry = await begun(slow)
            await change(client, 7, add=["A"])
            assert await slow.fill(entry, counting, {"7": b"", "8": b""}) == 1
            assert await slugs(client, 7) == ["A"]
            await change(client, 7, remove=["A"])
            assert await slow.fill(entry, counting, {"7": b""}) == 0
        assert await redis.get("segmentql:user:8") == b"V" + counting


async def test_a_fill_that_began_after_a_commit_is_accepted(client: Client, servers: Servers, redis: Redis) -> None:
    """As soon as somebody was changed the next who reads may store it."""
    counting = await used(client, redis)
    async with slow_reader(servers.redis_url) as slow:
        entry = await begun(slow)
        await change(client, 7, add=["A"])
        assert await slow.fill(entry, counting, {"7": b""}) == 0  # for all that it knew
        assert await slow.fill(await begun(slow), counting, {"7": b""}) == 1  # it was told more by the answer


@pytest.mark.parametrize(("users", "others"), [(NAMED, 1), (NAMED + 1, 1), (FEW, 1), (FEW + 1, 0)])
async def test_no_fill_of_many_who_were_changed_survives_and_none_at_all_if_they_are_too_many_to_be_named(
    client: Client, servers: Servers, redis: Redis, users: int, others: int
) -> None:
    counting = await used(client, redis)
    async with slow_reader(servers.redis_url) as slow:
        entry = await begun(slow)
        done = await client.ask(
            """mutation ($input: AddUsersToSegmentInput!, $key: String!) {
                 addUsersToSegment(input: $input, idempotencyKey: $key) { added } }""",
            input={"slug": "A", "userIds": [str(n) for n in range(users)]},
            key=new_key(),
        )
        assert done == {"addUsersToSegment": {"added": users}}
        await asyncio.gather(*(change(client, f"too {n}", add=["A"]) for n in range(30)))
        changed = [str(n) for n in range(users)] + [f"too {n}" for n in range(30)]
        assert await slow.fill(entry, counting, dict.fromkeys(changed, b"")) == 0
        assert await slow.fill(entry, counting, {"elsewhere": b""}) == others
        assert await slow.fill(await begun(slow), counting, {"elsewhere": b""}) == 1


async def test_what_is_removed_at_one_instant_takes_one_command_for_many(
    client: Client, servers: Servers, redis: Redis
) -> None:
    counting = await used(client, redis)
    async with slow_reader(servers.redis_url) as other:
        users = [f"user {n}" for n in range(250)]
        assert await other.fill(await begun(other), counting, dict.fromkeys(users, b"")) == 250
        await redis.config_resetstat()
        # One of them twice, and several by one.
        await asyncio.gather(
            other.forget(users[:7]), other.forget(users[3:5]), *(other.forget([user]) for user in users[7:])
        )
        commands = await redis.info("commandstats")
        assert commands["cmdstat_unlink"]["calls"] == 3
        assert commands["cmdstat_xadd"]["calls"] == 25
        assert await redis.exists(*[f"segmentql:user:{user}" for user in users]) == 0


@pytest.mark.parametrize("how", ["evicted", "begun anew", "written over", "cut short", "grown too long"])
async def test_no_fill_survives_its_journal(client: Client, servers: Servers, redis: Redis, how: str) -> None:
    """Redis may forget it like anything else, and then nobody knows who was changed."""
    counting = await used(client, redis)
    async with slow_reader(servers.redis_url) as slow:
        entry = await begun(slow)
        assert await slow.fill(entry, counting, {"8": b""}) == 1
        if how == "evicted":
            await redis.unlink(JOURNAL)
        elif how == "begun anew":
            await redis.unlink(JOURNAL)
            async with slow_reader(servers.redis_url) as other:
                assert await begun(other) != entry
        elif how == "written over":
            await redis.set(JOURNAL, "nonsense")
        elif how == "cut short":
            await redis.xadd(JOURNAL, {"user": "somebody"})
            await redis.xtrim(JOURNAL, maxlen=1, approximate=False)
        else:
            for number in range(LOOKED_AT):
                await redis.xadd(JOURNAL, {"user": f"somebody {number}"})
        assert await slow.fill(entry, counting, {"7": b""}) == 0
        assert await redis.get("segmentql:user:7") is None
        await change(client, 7, add=["A"])
        assert await slugs(client, 7) == ["A"]


async def test_a_journal_and_with_it_the_time_for_a_fill_is_short(
    client: Client, servers: Servers, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that Redis is cut off from relies on it, for with that the lists it could not remove are gone."""
    monkeypatch.setattr("db.journal.JOURNAL_MS", JOURNAL_MS)
    await redis.flushall()
    await create(client, "A")
    await slugs(client, "warm")
    async with slow_reader(servers.redis_url) as slow:
        await begun(slow)
        before = await redis.pttl(JOURNAL)
        assert 0 < before <= 3_000
        await change(client, 7, add=["A"])
        assert await redis.xlen(JOURNAL) >= 2
        assert await redis.pttl(JOURNAL) <= before
        await redis.pexpire(JOURNAL, 1)
        while await redis.exists(JOURNAL):
            await asyncio.sleep(0)
        # Whoever only writes begins none.
        await slow.forget(["7"])
        assert not await redis.exists(JOURNAL)


async def test_what_a_slow_reader_read_before_an_outage_does_not_count_after_it(
    client: Client, servers: Servers, engine: AsyncEngine, redis: Redis
) -> None:
    """A change meanwhile could not be told to Redis; so the generation is another one."""
    counting = await used(client, redis)
    async with slow_reader(servers.redis_url) as slow:
        entry = await begun(slow)
        await sneak_in(engine, "7", 1)
        await redis.unlink("segmentql:state")  # what a process does that could not invalidate
        await slow.fill(entry, counting, {"7": b""})
        assert await slugs(client, 7) == ["A"]


async def test_whoever_waits_for_a_refresh_that_fails_makes_one_of_its_own(
    servers: Servers, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would take an old copy for a current one."""
    reader = connections.reader(servers.database_url, pool_size=2)
    catalogue = Catalogue(reader, Clock())
    await create(client, "A")
    real, failures = catalogue._load, iter([True, True])

    async def load() -> None:
        await asyncio.sleep(0)
        if next(failures, False):
            raise ConnectionError
        await real()

    monkeypatch.setattr(catalogue, "_load", load)
    ended = await asyncio.gather(*(catalogue.refresh() for _ in range(5)), return_exceptions=True)
    assert [type(each) for each in ended] == [ConnectionError, ConnectionError, *[type(None)] * 3]
    assert catalogue.version == 1
    await reader.dispose()


async def test_a_lost_announcement_is_made_up_for_by_the_next_process_that_knows(
    client: Client, serve: Serve, redis: Redis
) -> None:
    await create(client, "A")
    await change(client, 7, add=["A"])
    async with serve() as other:
        assert await slugs(other, 7) == ["A"]
        before = await state(redis)
        await delete(client, "A")
        await redis.set("segmentql:state", before)  # as if the writer had been cut off from Redis
        assert await slugs(client, 7) == []
        assert await slugs(other, 7) == []
        assert await state(redis) != before


async def test_a_version_from_another_past_is_not_believed(client: Client, redis: Redis) -> None:
    """PostgreSQL was restored from a backup; Redis remembers what came after it."""
    await create(client, "A")
    await change(client, 7, add=["A"])
    assert await slugs(client, 7) == ["A"]
    counting = await generation(redis)
    await redis.set("segmentql:state", counting + b":999")
    assert await slugs(client, 7) == ["A"]
    assert await slugs(client, 7) == ["A"]
    assert int((await state(redis)).partition(b":")[2]) == 1


async def test_lists_of_an_older_generation_do_not_count(client: Client, engine: AsyncEngine, redis: Redis) -> None:
    await create(client, "A", "B")
    await change(client, 7, add=["A"])
    assert await slugs(client, 7) == ["A"]
    await sneak_in(engine, "7", 2)
    await redis.unlink("segmentql:state")
    assert await slugs(client, 7) == ["A", "B"]


async def test_cached_lists_live_less_than_a_minute_and_not_all_equally_long(client: Client, redis: Redis) -> None:
    await create(client, "A")
    for user in range(20):
        await slugs(client, user)
    lives = [await redis.pttl(f"segmentql:user:{user}") for user in range(20)]
    assert all(40_000 < life <= 55_000 for life in lives)
    assert max(lives) - min(lives) > 1_000
