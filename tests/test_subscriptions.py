"""Subscriptions tell every change, once and in order."""

from datetime import UTC, datetime, timedelta
from typing import Any

import operations
import pytest
from conftest import Client, Serve
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from subscribing import USER, Socket, socket, stream

from resolvers import settling

ROLLOUT = """mutation ($slug: String!, $percent: Float, $key: String!) {
  updateSegment(slug: $slug, input: {rolloutPercent: $percent}, idempotencyKey: $key) { userErrors { message } } }"""
BULK = """mutation ($input: AddUsersToSegmentInput!, $key: String!) {
  addUsersToSegment(input: $input, idempotencyKey: $key) { added userErrors { message } } }"""


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
    await operations.change(client, 7, add=["A"], expiresAt=(now + timedelta(seconds=1.5)).isoformat())
    async with socket(client) as subscriber:
        await subscriber.subscribe(USER, id=7)
        assert await news(subscriber) == first("A")
        assert await news(subscriber) == told(("A", "EXPIRED"), now=())
        assert timedelta(seconds=1.5) <= datetime.now(UTC) - now < timedelta(seconds=3)


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
        await slow.execute(
            text("""
                WITH new AS (INSERT INTO memberships (user_id, segment_id, added_at)
                             SELECT '7', id, clock_timestamp() FROM segments WHERE slug = 'A' RETURNING *)
                INSERT INTO membership_events (user_id, segment_id, action, at, expires_at)
                SELECT user_id, segment_id, 'ADDED', added_at, 'infinity' FROM new
            """)
        )
        await subscriber.subscribe(USER, id=7)
        assert await news(subscriber) == first()
        await operations.change(client, 7, add=["B"])
        assert await news(subscriber) == told(("B", "ADDED"), now=("B",))
        await operations.change(client, 7, remove=["B"])
        assert await news(subscriber) == told(("B", "REMOVED"), now=())
        await slow.commit()
        # Whoever commits so says so with the next change, if not by itself.
        await operations.change(client, 7, add=["B"])
        assert await news(subscriber) == told(("A", "ADDED"), ("B", "ADDED"), now=("A", "B"))


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
