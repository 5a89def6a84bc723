"""Subscriptions tell every change, once and in order."""

import asyncio
import dataclasses
import gc
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import operations
import pytest
from conftest import Client, Serve
from graphql.execution.collect_fields import CollectedFields
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from subscribing import USER, Socket, socket, stream

from db import watching
from db.cache_format import USER_CHANNEL
from db.watching import Look
from resolvers import changes, looking, settling, subscribing
from resolvers.errors import Overloaded
from resolvers.looking import Looking
from resolvers.reads import Reads
from server.messages import Executor
from server.sessions import Session

ROLLOUT = """mutation ($slug: String!, $percent: Float, $key: String!) {
  updateSegment(slug: $slug, input: {rolloutPercent: $percent}, idempotencyKey: $key) { userErrors { message } } }"""
BULK = """mutation ($input: AddUsersToSegmentInput!, $key: String!) {
  addUsersToSegment(input: $input, idempotencyKey: $key) { added userErrors { message } } }"""

CHANGE = """mutation ($slug: String!, $key: String!) {
  changeUserSegments(input: {userId: "7", add: [$slug]}, idempotencyKey: $key) { added } }"""
# What a process commits that tells nobody of it.
ADD = text("""
    WITH new AS (INSERT INTO memberships (user_id, segment_id, added_at)
                 SELECT '7', id, clock_timestamp() + make_interval(secs => :seconds) FROM segments WHERE slug = :slug
                 RETURNING *)
    INSERT INTO membership_events (user_id, segment_id, action, at, expires_at)
    SELECT user_id, segment_id, 'ADDED', added_at, 'infinity' FROM new
""")


def first(*slugs: str) -> dict[str, Any]:
    """What a subscriber is told at the beginning."""
    return {"resync": True, "events": [], "user": {"segments": [{"slug": slug} for slug in slugs]}}


def told(*events: tuple[str, str], now: tuple[str, ...], source: str = "EXPLICIT") -> dict[str, Any]:
    return {
        "resync": False,
        "events": [{"slug": slug, "action": action, "source": source} for slug, action in events],
        "user": {"segments": [{"slug": slug} for slug in now]},
    }


async def news(subscriber: Socket) -> Any:
    return (await subscriber.next())["userChanged"]


async def test_who_watches_a_user_is_told_of_each_change(client: Client) -> None:
    await operations.create(client, "A", "B")
    await operations.change(client, 7, add=["A"])
    async with socket(client) as subscriber:
        await subscriber.subscribe(USER, id=7)
        assert await news(subscriber) == first("A")
        await operations.change(client, 8, add=["B"])
        await operations.change(client, 7, add=["B"], remove=["A"])
        assert await news(subscriber) == told(("A", "REMOVED"), ("B", "ADDED"), now=("B",))
        await operations.change(client, 7, add=["B"], ttlDays=3)
        assert await news(subscriber) == told(("B", "EXPIRY_CHANGED"), now=("B",))


async def test_what_a_subscription_holds_does_not_grow_with_its_messages(client: Client) -> None:
    await operations.create(client, "A")
    async with socket(client) as subscriber:
        await subscriber.subscribe(USER, id=7)
        assert await news(subscriber) == first()

        async def held_after(messages: int) -> int:
            for number in range(messages):
                adding = number % 2 == 0
                await operations.change(client, 7, add=["A"][not adding :], remove=["A"][adding:])
                await news(subscriber)
            gc.collect()
            return sum(isinstance(each, CollectedFields) for each in gc.get_objects())

        assert await held_after(2) == await held_after(10)


async def test_nothing_is_left_of_subscribers_that_have_left(client: Client) -> None:
    """What is left of the process's size then is what the allocator keeps for the next ones."""
    await operations.create(client, "A")

    def left() -> int:
        gc.collect()
        return sum(isinstance(each, Executor | Session) for each in gc.get_objects())

    before = left()
    async with AsyncExitStack() as stack:
        for _ in range(10):
            subscriber = await stack.enter_async_context(socket(client))
            await subscriber.subscribe(USER, id=7)
            assert await news(subscriber) == first()
        assert left() >= before + 20
    for _ in range(500):
        if left() == before:
            break
        await asyncio.sleep(0.01)
    assert left() == before


async def test_a_stream_of_events_tells_the_same(client: Client) -> None:
    await operations.create(client, "A")
    async with stream(client, USER, id=7) as events:
        assert events.response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert await events.next() == ("next", {"data": {"userChanged": first()}})
        await operations.change(client, 7, add=["A"])
        assert await events.next() == ("next", {"data": {"userChanged": told(("A", "ADDED"), now=("A",))}})


async def test_fifty_subscribers_in_two_processes_see_each_change_once(serve: Serve) -> None:
    async with serve() as one, serve() as other, socket(one) as near, socket(other) as far:
        await operations.create(one, "A", "B")
        for subscriber in (near, far):
            for number in range(25):
                await subscriber.subscribe(USER, number, id=7)
            for _ in range(25):
                assert await news(subscriber) == first()
        for turn in range(10):
            server = (one, other)[turn % 2]
            await operations.change(server, 7, add=["A"][turn % 2 :], remove=["A"][: turn % 2])
        wanted = ["ADDED", "REMOVED"] * 5
        for subscriber in (near, far):
            seen: dict[str, list[str]] = {str(number): [] for number in range(25)}
            while any(len(actions) < 10 for actions in seen.values()):
                message = await subscriber.receive()
                change = message["payload"]["data"]["userChanged"]
                assert not change["resync"]
                seen[message["id"]] += [event["action"] for event in change["events"]]
            assert all(actions == wanted for actions in seen.values())


async def test_an_expiry_is_told_when_it_comes(client: Client, engine: AsyncEngine) -> None:
    await operations.create(client, "A")
    async with engine.connect() as conn:
        now: datetime = (await conn.execute(text("SELECT clock_timestamp()"))).scalar_one()
    await operations.change(client, 7, add=["A"], expiresAt=(now + timedelta(seconds=4)).isoformat())
    async with socket(client) as subscriber:
        await subscriber.subscribe(USER, id=7)
        assert await news(subscriber) == first("A")
        assert await news(subscriber) == told(("A", "EXPIRED"), now=())
        assert datetime.now(UTC) - now >= timedelta(seconds=4)


async def test_the_deletion_of_a_segment_is_told(serve: Serve) -> None:
    async with serve() as one, serve() as other, socket(one) as subscriber:
        await operations.create(one, "A", "B")
        await operations.change(one, 7, add=["A", "B"])
        await subscriber.subscribe(USER, id=7)
        assert await news(subscriber) == first("A", "B")
        await operations.delete(other, "A")
        assert await news(subscriber) == told(("A", "SEGMENT_DELETED"), now=("B",))


async def test_a_bulk_change_is_told(client: Client) -> None:
    await operations.create(client, "A")
    async with socket(client) as subscriber:
        await subscriber.subscribe(USER, id=7)
        assert await news(subscriber) == first()
        users = [str(number) for number in range(300)]
        await client.ask(BULK, input={"slug": "A", "userIds": users}, key=operations.new_key())
        assert await news(subscriber) == told(("A", "ADDED"), now=("A",))


async def test_a_rollout_that_moves_has_the_user_read_anew(client: Client) -> None:
    await operations.create(client, "A", "B")
    async with socket(client) as subscriber:
        await subscriber.subscribe(USER, id=7)
        assert await news(subscriber) == first()
        await client.ask(ROLLOUT, slug="A", percent=100, key=operations.new_key())
        assert await news(subscriber) == first("A")
        await operations.change(client, 7, remove=["A"])
        assert await news(subscriber) == told(("A", "REMOVED"), now=(), source="ROLLOUT")
        await operations.change(client, 7, add=["B"])
        assert await news(subscriber) == told(("B", "ADDED"), now=("B",))
        await client.ask(ROLLOUT, slug="A", percent=0, key=operations.new_key())
        assert await news(subscriber) == first("B")


async def test_without_redis_changes_are_told_within_seconds(serve: Serve) -> None:
    async with serve(redis_url="redis://127.0.0.1:1/0") as client, socket(client) as subscriber:
        await operations.create(client, "A")
        await subscriber.subscribe(USER, id=7)
        assert await news(subscriber) == first()
        await operations.change(client, 7, add=["A"])
        assert await news(subscriber) == told(("A", "ADDED"), now=("A",))


async def test_what_is_committed_late_is_not_missed(
    client: Client, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event is dated before its commit: others may have been told meanwhile that are dated later."""
    monkeypatch.setattr(settling, "OVERLAP", timedelta(0))
    await operations.create(client, "A", "B")
    async with socket(client) as subscriber, engine.connect() as slow:
        await slow.execute(text("SELECT pg_current_xact_id()"))
        await slow.execute(ADD, {"slug": "A", "seconds": 0})
        await subscriber.subscribe(USER, id=7)
        assert await news(subscriber) == first()
        await operations.change(client, 7, add=["B"])
        assert await news(subscriber) == told(("B", "ADDED"), now=("B",))
        await operations.change(client, 7, remove=["B"])
        assert await news(subscriber) == told(("B", "REMOVED"), now=())
        await slow.commit()
        # Whoever commits so says so with the next change, if not by itself.
        await operations.change(client, 7, add=["B"])
        late: list[tuple[str, str]] = []
        while len(late) < 2:
            late += [(event["slug"], event["action"]) for event in (await news(subscriber))["events"]]
        assert late == [("A", "ADDED"), ("B", "ADDED")]


async def test_a_lost_hint_costs_seconds_and_no_event(client: Client, redis: Redis) -> None:
    await operations.create(client, "A")
    async with socket(client) as subscriber:
        await subscriber.subscribe(USER, id=7)
        assert await news(subscriber) == first()
        # Whoever listens is disconnected, and does not hear what is said meanwhile.
        for _ in range(3):
            await redis.client_kill_filter(_type="pubsub")
            await operations.change(client, 7, add=["A"])
            assert await news(subscriber) == told(("A", "ADDED"), now=("A",))
            await operations.change(client, 7, remove=["A"])
            assert await news(subscriber) == told(("A", "REMOVED"), now=())


async def test_the_first_message_shows_what_nobody_was_told_of(client: Client, engine: AsyncEngine) -> None:
    await operations.create(client, "A")
    assert await operations.slugs(client, 7) == []
    async with engine.begin() as tx:
        await tx.execute(ADD, {"slug": "A", "seconds": 0})
    async with socket(client) as subscriber:
        await subscriber.subscribe(USER, id=7)
        assert await news(subscriber) == first("A")


async def add(client: Client, slug: str) -> None:
    """Of which nothing is read."""
    assert await client.ask(CHANGE, slug=slug, key=operations.new_key()) == {"changeUserSegments": {"added": [slug]}}


class Failing:
    """What reads of memberships do: what they always do, unless they fail, or are held up once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fails = self.hangs = False
        self.hanging = asyncio.Event()
        self.goes_on = asyncio.Event()
        read = Reads.memberships

        async def memberships(*args: Any, **options: Any) -> Any:
            if self.fails:
                raise Overloaded
            if self.hangs:
                self.hangs = False
                self.hanging.set()
                await self.goes_on.wait()
            return await read(*args, **options)

        monkeypatch.setattr(Reads, "memberships", memberships)


async def failed(subscriber: Socket, code: str) -> str:
    """Whose next message has failed, while the subscription goes on."""
    message = await subscriber.receive()
    assert (message["type"], message["payload"]["data"]) == ("next", None)
    assert [(error["path"][0], error["extensions"]["code"]) for error in message["payload"]["errors"]] == [
        ("userChanged", code)
    ]
    return str(message["id"])


async def test_after_a_message_that_failed_the_user_is_read_anew(
    client: Client, engine: AsyncEngine, redis: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(changes, "AGAIN_SECONDS", 0.5)
    failing = Failing(monkeypatch)
    await operations.create(client, "A", "B")
    async with socket(client) as subscriber:
        for number in range(20):
            await subscriber.subscribe(USER, number, id=7)
            assert await news(subscriber) == first()
        failing.fails = True
        async with engine.begin() as tx:
            await tx.execute(ADD, {"slug": "A", "seconds": 0})
        await redis.publish(USER_CHANNEL + "7", "")
        assert len({await failed(subscriber, "OVERLOADED") for _ in range(20)}) == 20
        failing.fails = False
        for _ in range(20):
            assert await news(subscriber) == first("A")
        assert len([each for each in caplog.records if each.levelno == logging.WARNING]) == 1
        await operations.change(client, 7, add=["B"])
        for _ in range(20):
            assert await news(subscriber) == told(("B", "ADDED"), now=("A", "B"))


async def test_a_message_has_its_time(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "AGAIN_SECONDS", 0.1)
    failing = Failing(monkeypatch)
    async with serve(execution_timeout=1) as client, socket(client) as subscriber:
        await operations.create(client, "A")
        await subscriber.subscribe(USER, id=7)
        assert await news(subscriber) == first()
        failing.hangs = True
        await add(client, "A")
        await failed(subscriber, "TIMEOUT")
        assert await news(subscriber) == first("A")


async def test_messages_are_made_by_turns(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscribing, "MESSAGES_AT_A_TIME", 2)
    at_work, most, read = 0, 0, Reads.memberships

    async def memberships(*args: Any, **options: Any) -> Any:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0.01)
        at_work -= 1
        return await read(*args, **options)

    monkeypatch.setattr(Reads, "memberships", memberships)
    async with serve() as client, socket(client) as subscriber:
        await operations.create(client, "A")
        for number in range(10):
            await subscriber.subscribe(USER, number, id=7)
            assert await news(subscriber) == first()
        await add(client, "A")
        for _ in range(10):
            assert await news(subscriber) == told(("A", "ADDED"), now=("A",))
    assert most == 2


async def test_a_look_that_is_too_much_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "PAUSE_SECONDS", 0)
    looked: list[int] = []

    async def look(names: Sequence[str]) -> None:
        looked.append(len(names))
        if len(names) > 300:
            raise TimeoutError

    found = Looking(look)
    async with found.running():
        found.soon(str(number) for number in range(999))
        await asyncio.wait_for(found.ask("1000"), 5)
    assert looked[:3] == [1_000, 500, 250]


async def test_what_happens_while_a_message_is_made_is_one_message(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(monkeypatch)
    await operations.create(client, "A", "B", "C")
    async with socket(client) as subscriber:
        await subscriber.subscribe(USER, id=7)
        assert await news(subscriber) == first()
        failing.hangs = True
        await add(client, "A")
        await asyncio.wait_for(failing.hanging.wait(), 5)
        for number, slug in enumerate("BC", 2):
            await add(client, slug)
            # Who begins has a look waited for: what it finds waits for the other.
            await subscriber.subscribe(USER, number, id=7)
            message = await subscriber.receive()
            while message["id"] != str(number):
                message = await subscriber.receive()
        failing.goes_on.set()
        seen: list[list[str]] = []
        while len(seen) < 2:
            message = await subscriber.receive()
            if message["id"] == "1":
                seen.append([event["slug"] for event in message["payload"]["data"]["userChanged"]["events"]])
        assert seen == [["A"], ["B", "C"]]


async def test_more_events_than_are_read_are_told_once(
    client: Client, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as a transaction is open looks reach back to its beginning."""
    monkeypatch.setattr(watching, "MOST_EVENTS", 2)
    await operations.create(client, "A", "B")
    async with socket(client) as subscriber, engine.connect() as slow:
        await slow.execute(text("SELECT pg_current_xact_id()"))
        await slow.execute(ADD, {"slug": "B", "seconds": -1})
        await operations.change(client, 7, add=["A"])
        await operations.change(client, 7, remove=["A"])
        await operations.change(client, 7, add=["A"])
        for number in range(5):
            await subscriber.subscribe(USER, number, id=7)
            message = await subscriber.receive()
            assert message["id"] == str(number)
            assert message["payload"]["data"]["userChanged"] == first("A")
        # It is dated before all that is read.
        await slow.commit()
        await subscriber.subscribe(USER, 5, id=7)
        seen: set[str] = set()
        while len(seen) < 6:
            message = await subscriber.receive()
            assert message["payload"]["data"]["userChanged"] == first("A", "B")
            seen.add(message["id"])


async def test_more_events_than_an_answer_may_have_are_none(serve: Serve, engine: AsyncEngine, redis: Redis) -> None:
    async with serve(max_nodes=100) as client, socket(client) as subscriber:
        await operations.create(client, "A")
        await subscriber.subscribe(USER, id=7)
        assert await news(subscriber) == first()
        async with engine.begin() as tx:
            await tx.execute(
                text("""
                    INSERT INTO membership_events (user_id, segment_id, action, at)
                    SELECT '7', id, 'REMOVED', clock_timestamp() + n * interval '1 microsecond'
                    FROM segments, generate_series(1, 101) AS n
                """)
            )
        await redis.publish(USER_CHANNEL + "7", "")
        assert await news(subscriber) == first()


async def test_another_server_may_have_a_clock_that_is_behind(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead, look = timedelta(seconds=30), watching.look

    async def looked(*args: Any, **options: Any) -> Look:
        found = await look(*args, **options)
        return dataclasses.replace(found, at=found.at + ahead)

    monkeypatch.setattr(watching, "look", looked)
    monkeypatch.setattr(settling, "MARK_SECONDS", 0)
    await operations.create(client, "A", "B")
    async with socket(client) as subscriber:
        for number in range(5):
            await subscriber.subscribe(USER, number, id=7)
            assert await news(subscriber) == first()
        ahead = timedelta(0)
        await operations.change(client, 7, add=["A"])
        for _ in range(5):
            assert await news(subscriber) == first("A")
        await operations.change(client, 7, add=["B"])
        for _ in range(5):
            assert await news(subscriber) == told(("B", "ADDED"), now=("A", "B"))
