"""Segments that take in a percentage of all users."""

from typing import Any

import pytest
from conftest import Client, Serve
from operations import ERRORS, change, create, delete, expire, memberships, new_key, slugs
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from test_bulk import add, changes, counts, remove

from db.buckets import bucket, sql

CREATE = f"""mutation ($percent: Float, $key: String!) {{
  createSegment(input: {{slug: "R", rolloutPercent: $percent}}, idempotencyKey: $key) {{
    segment {{ rolloutPercent }} {ERRORS} }} }}"""
UPDATE = f"""mutation ($input: UpdateSegmentInput!, $key: String!) {{
  updateSegment(slug: "R", input: $input, idempotencyKey: $key) {{ segment {{ rolloutPercent }} {ERRORS} }} }}"""
MANY = 'query ($ids: [ID!]!) { users(ids: $ids) { id isIn(slug: "R") } }'


async def created(client: Client, percent: float | None) -> None:
    payload = (await client.ask(CREATE, percent=percent, key=new_key()))["createSegment"]
    assert (payload["userErrors"], payload["segment"]) == ([], {"rolloutPercent": percent})


async def roll_out(client: Client, percent: float | None) -> None:
    payload = (await client.ask(UPDATE, input={"rolloutPercent": percent}, key=new_key()))["updateSegment"]
    assert (payload["userErrors"], payload["segment"]) == ([], {"rolloutPercent": percent})


async def inside(client: Client, users: list[str]) -> set[str]:
    found: set[str] = set()
    for start in range(0, len(users), 100):
        answer = await client.ask(MANY, ids=users[start : start + 100])
        found |= {user["id"] for user in answer["users"] if user["isIn"]}
    return found


async def seed(engine: AsyncEngine) -> str:
    async with engine.connect() as conn:
        found: str = (
            await conn.execute(text("SELECT seed FROM segments WHERE slug = 'R' AND deleted_at IS NULL"))
        ).scalar_one()
    return found


USERS = [f"user-{n}" for n in range(300)]


async def test_the_hash_decides_and_raising_keeps_everyone(client: Client, engine: AsyncEngine) -> None:
    await created(client, 10)
    before: set[str] = set()
    for percent in (10.0, 10.01, 50.0, 99.99, 100.0):
        await roll_out(client, percent)
        now = await inside(client, USERS)
        assert now == {user for user in USERS if bucket(await seed(engine), user) < percent * 100}
        assert before <= now
        before = now
    assert before == set(USERS)
    await roll_out(client, 0.0)
    assert await inside(client, USERS) == set()
    await roll_out(client, None)
    assert await inside(client, USERS) == set()


async def test_postgresql_computes_the_same_hash(client: Client, engine: AsyncEngine) -> None:
    users = [*USERS, "\N{GRINNING FACE}", "a:b", "é"]
    async with engine.connect() as conn:
        found = await conn.execute(
            text(f"SELECT {sql('CAST(:seed AS text)', 'u')} FROM unnest(CAST(:users AS text[])) AS u"),
            {"seed": "seed", "users": users},
        )
        assert list(found.scalars()) == [bucket("seed", user) for user in users]


async def test_every_process_sees_a_change_at_once(client: Client, serve: Serve) -> None:
    await created(client, None)
    async with serve() as other:
        for percent in (100.0, 0.0, 100.0):
            await roll_out(client, percent)
            for one in (client, other):
                assert await slugs(one, "u1") == (["R"] if percent else [])
                assert await slugs(one, "u1", "LATEST") == (["R"] if percent else [])


async def test_a_membership_says_why_and_since_when(client: Client) -> None:
    await created(client, 100)
    (first,) = await memberships(client, "u1")
    assert (first["source"], first["expiresAt"], first["segment"]["slug"]) == ("ROLLOUT", None, "R")
    await roll_out(client, 50)
    await roll_out(client, 100)
    there = {user: (await memberships(client, user))[0]["addedAt"] for user in USERS[:40]}
    assert len(set(there.values())) == 2
    assert min(there.values()) == first["addedAt"]
    await change(client, "u1", add=["R"], ttlDays=5)
    (explicit,) = await memberships(client, "u1")
    assert explicit["source"] == "EXPLICIT"
    assert explicit["expiresAt"] is not None


async def test_who_was_removed_stays_out_until_added_again(client: Client, engine: AsyncEngine, redis: Redis) -> None:
    await created(client, 100)
    payload = await change(client, "u1", remove=["R"])
    assert (payload["removed"], payload["unchanged"]) == (["R"], [])
    payload = await change(client, "u1", remove=["R"])
    assert (payload["removed"], payload["unchanged"]) == ([], ["R"])
    for percent in (0.0, None, 100.0):
        await roll_out(client, percent)
        assert await slugs(client, "u1") == await slugs(client, "u1", "LATEST") == []
    payload = await change(client, "u1", add=["R"], ttlDays=5)
    assert payload["added"] == ["R"]
    await expire(engine, "u1", "R")
    await redis.flushall()
    (membership,) = await memberships(client, "u1")
    assert membership["source"] == "ROLLOUT"


async def test_who_is_outside_the_percentage_and_removed_stays_out_when_it_rises(client: Client) -> None:
    await created(client, 0)
    payload = await change(client, "u1", remove=["R"])
    assert payload["unchanged"] == ["R"]
    await roll_out(client, 100)
    assert await slugs(client, "u1") == []
    assert await slugs(client, "u2") == ["R"]


async def test_a_removed_member_by_hand_is_not_taken_in_again(client: Client) -> None:
    await created(client, 100)
    await change(client, "u1", add=["R"])
    payload = await change(client, "u1", remove=["R"])
    assert payload["removed"] == ["R"]
    assert await slugs(client, "u1") == []


async def test_many_are_removed_and_added_again(client: Client) -> None:
    await created(client, 100)
    await add(client, "R", ["u1"])
    assert counts(await remove(client, "R", ["u1", "u2"])) == (0, 0, 2, 0)
    assert counts(await remove(client, "R", ["u1", "u2", "u3"])) == (0, 0, 1, 2)
    assert await inside(client, ["u1", "u2", "u3", "u4"]) == {"u4"}
    assert counts(await changes(client, {"userId": "u2", "add": ["R"]}, {"userId": "u4", "remove": ["R"]})) == (
        1,
        0,
        1,
        0,
    )
    assert await inside(client, ["u1", "u2", "u3", "u4"]) == {"u2"}


async def test_a_replay_says_what_was_removed_from_the_rollout(client: Client) -> None:
    await created(client, 100)
    first = await change(client, "u1", remove=["R"], key="remove-once")
    again = await change(client, "u1", remove=["R"], key="remove-once")
    assert again == {**first, "replayed": True}
    assert again["removed"] == ["R"]


async def test_a_deleted_segment_takes_nobody_in_and_its_successor_others(client: Client, engine: AsyncEngine) -> None:
    await created(client, 50)
    first, old = await inside(client, USERS), await seed(engine)
    await delete(client, "R")
    assert await inside(client, USERS) == set()
    await created(client, 50)
    assert await seed(engine) != old
    assert await inside(client, USERS) != first


async def test_it_can_be_filtered_and_asked_for_one(client: Client) -> None:
    await created(client, 100)
    await create(client, "OTHER")
    answer = await client.ask('{ user(id: "u") { isIn(slug: "R") only: segments(only: ["OTHER"]) { slug } } }')
    assert answer["user"] == {"isIn": True, "only": []}
    answer = await client.ask('{ segment(slug: "R") { memberCount { value exact } members { nodes { id } } } }')
    assert answer["segment"] == {"memberCount": {"value": 0, "exact": True}, "members": {"nodes": []}}


@pytest.mark.parametrize("percent", [-0.01, 100.01, 12.345, 1_000_000.5, 0.001])
async def test_a_percentage_that_is_none_is_refused(client: Client, percent: float) -> None:
    payload = (await client.ask(CREATE, percent=percent, key=new_key()))["createSegment"]
    assert [(error["code"], error["path"]) for error in payload["userErrors"]] == [
        ("INVALID", ["input", "rolloutPercent"])
    ]
    await created(client, 0.29)
    payload = (await client.ask(UPDATE, input={"rolloutPercent": percent}, key=new_key()))["updateSegment"]
    assert [(error["code"], error["path"]) for error in payload["userErrors"]] == [
        ("INVALID", ["input", "rolloutPercent"])
    ]


async def test_a_change_of_something_else_keeps_the_percentage(client: Client) -> None:
    await created(client, 12.5)
    variables: dict[str, Any] = {"input": {"description": "other"}, "key": new_key()}
    payload = (await client.ask(UPDATE, **variables))["updateSegment"]
    assert payload["segment"] == {"rolloutPercent": 12.5}


async def test_members_come_page_by_page_and_are_counted(client: Client, engine: AsyncEngine) -> None:
    await create(client, "A")
    await add(client, "A", [f"u{n:03}" for n in range(150)], ttlDays=5)
    await expire(engine, "u007", "A")
    query = """query ($first: Int! = 50, $after: String, $limit: BigInt! = 10000) { segment(slug: "A") {
      memberCount(limit: $limit) { value exact }
      members(first: $first, after: $after) {
        edges { cursor node { id } membership { addedAt expiresAt source segment { slug } } }
        pageInfo { hasNextPage hasPreviousPage startCursor endCursor } } } }"""
    first = (await client.ask(query, first=100))["segment"]
    assert first["memberCount"] == {"value": 149, "exact": True}
    assert first["members"]["edges"][0]["membership"]["source"] == "EXPLICIT"
    assert first["members"]["edges"][0]["membership"]["expiresAt"] is not None
    end = first["members"]["pageInfo"]["endCursor"]
    second = (await client.ask(query, first=100, after=end, limit=149))["segment"]
    assert second["memberCount"] == {"value": 149, "exact": True}
    found = [edge["node"]["id"] for page in (first, second) for edge in page["members"]["edges"]]
    assert found == [f"u{n:03}" for n in range(150) if n != 7]
    assert not second["members"]["pageInfo"]["hasNextPage"]
    assert (await client.ask(query, limit=148))["segment"]["memberCount"] == {"value": 148, "exact": False}
    for variables, argument in (({"after": "nonsense"}, "after"), ({"limit": 0}, "limit"), ({"first": 101}, "first")):
        answer = await client.post(query, variables)
        assert answer["errors"][0]["extensions"] == {"code": "BAD_USER_INPUT", "argument": argument}
