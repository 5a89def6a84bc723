"""The operations that tests send, and the few things they all look up."""

import itertools
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from conftest import Client
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from db import changes
from jobs import verification

ERRORS = "replayed userErrors { code path message }"
CREATE = f"""mutation ($slug: String!, $description: String, $key: String!) {{
  createSegment(input: {{slug: $slug, description: $description}}, idempotencyKey: $key) {{
    segment {{ id slug description createdAt updatedAt deletedAt }} {ERRORS} }} }}"""
UPDATE = f"""mutation ($slug: String!, $input: UpdateSegmentInput!, $key: String!) {{
  updateSegment(slug: $slug, input: $input, idempotencyKey: $key) {{
    segment {{ id slug description createdAt updatedAt deletedAt }} {ERRORS} }} }}"""
DELETE = f"""mutation ($slug: String!, $key: String!) {{
  deleteSegment(slug: $slug, idempotencyKey: $key) {{ segment {{ id slug deletedAt }} {ERRORS} }} }}"""
CHANGE = f"""mutation ($input: ChangeUserSegmentsInput!, $key: String!) {{
  changeUserSegments(input: $input, idempotencyKey: $key) {{
    user {{ id segments {{ slug }} }} added updated removed unchanged {ERRORS} }} }}"""
SEGMENTS = """query ($id: ID!, $freshness: Freshness! = CACHED) {
  user(id: $id) { segments(freshness: $freshness) { slug } } }"""
MEMBERSHIPS = """query ($id: ID!, $freshness: Freshness! = CACHED) {
  user(id: $id) { memberships(freshness: $freshness) { segment { id slug } addedAt expiresAt source } } }"""
HISTORY = """query ($id: ID!, $from: DateTime, $to: DateTime, $first: Int! = 50, $after: String) {
  user(id: $id) { history(from: $from, to: $to, first: $first, after: $after) {
    nodes { userId slug action at expiresAt actor }
    edges { cursor node { slug } }
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor } } } }"""

_numbers = itertools.count(1)


def new_key() -> str:
    return f"key-of-a-test-{next(_numbers)}"


async def create(client: Client, *slugs: str) -> None:
    for slug in slugs:
        payload = (await client.ask(CREATE, slug=slug, key=new_key()))["createSegment"]
        assert payload["userErrors"] == []


async def delete(client: Client, slug: str) -> Any:
    payload = (await client.ask(DELETE, slug=slug, key=new_key()))["deleteSegment"]
    assert payload["userErrors"] == []
    return payload["segment"]


async def change(client: Client, user_id: str | int, *, key: str = "", **input: Any) -> Any:
    """The whole payload, refusals included."""
    answer = await client.ask(CHANGE, input={"userId": user_id, **input}, key=key or new_key())
    return answer["changeUserSegments"]


async def change_within(
    tx: AsyncConnection, user_id: str, *, add: Sequence[str] = (), remove: Sequence[str] = ()
) -> None:
    """Make a change in a transaction that stays open: it is dated, and nobody else sees it yet."""
    call = changes.CHANGE.text.replace("$", ":a")
    arguments = ("anonymous", "changeUserSegments", new_key(), b"", 0, user_id, [*add, *remove], len(add), None, None)
    answer = await tx.execute(text(call), {f"a{number}": value for number, value in enumerate(arguments, 1)})
    assert "outcome" in answer.scalar_one()


async def slugs(client: Client, user_id: str | int, freshness: str = "CACHED") -> list[str]:
    answer = await client.ask(SEGMENTS, id=user_id, freshness=freshness)
    return [segment["slug"] for segment in answer["user"]["segments"]]


async def memberships(client: Client, user_id: str | int, freshness: str = "CACHED") -> Any:
    return (await client.ask(MEMBERSHIPS, id=user_id, freshness=freshness))["user"]["memberships"]


async def history(client: Client, user_id: str | int, **arguments: Any) -> Any:
    """The events' nodes, newest first."""
    return (await client.ask(HISTORY, id=user_id, **arguments))["user"]["history"]["nodes"]


async def state(redis: Redis) -> bytes:
    """What Redis holds for all processes: generation and version."""
    found = await redis.get("segmentql:state")
    assert isinstance(found, bytes)
    return found


async def generation(redis: Redis) -> bytes:
    """Under which lists in Redis count."""
    return (await state(redis)).partition(b":")[0]


async def database_clock(engine: AsyncEngine) -> datetime:
    async with engine.connect() as conn:
        clock: datetime = (await conn.execute(text("SELECT clock_timestamp()"))).scalar_one()
    return clock


async def count(engine: AsyncEngine, table: str) -> int:
    async with engine.connect() as conn:
        found: int = (await conn.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one()
    return found


async def expire(engine: AsyncEngine, user_id: str, slug: str, seconds_ago: float = 1) -> None:
    """Let a membership have ended some time ago, as if it had been added with that expiry; no job has noticed."""
    async with engine.begin() as tx:
        done = await tx.execute(
            text("""
                WITH moved AS (
                    UPDATE memberships AS m
                    SET expires_at = clock_timestamp() - make_interval(secs => :ago),
                        added_at = least(m.added_at, clock_timestamp() - make_interval(secs => :ago + 3600))
                    FROM segments AS s
                    WHERE s.id = m.segment_id AND s.slug = :slug AND m.user_id = :user_id
                    RETURNING m.user_id, m.segment_id, m.added_at, m.expires_at
                )
                UPDATE membership_events AS e SET at = moved.added_at, expires_at = moved.expires_at
                FROM moved WHERE e.user_id = moved.user_id AND e.segment_id = moved.segment_id AND action = 'ADDED'
            """),
            {"user_id": user_id, "slug": slug, "ago": seconds_ago},
        )
        assert done.rowcount == 1


async def differences(engine: AsyncEngine) -> list[str]:
    """Where the history does not tell how exactly the memberships came to be; nowhere, if all is well."""
    return [example for check in await verification.memberships(engine) for example in check.examples]
