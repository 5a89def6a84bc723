"""A small world with everything in it that an answer can depend on."""

from datetime import UTC, datetime, timedelta
from typing import Any

from background import execute
from conftest import Client
from generated_values import World
from operations import ERRORS, change, create, delete, expire, new_key
from sqlalchemy.ext.asyncio import AsyncEngine

ROLLOUT = f"""mutation ($slug: String!, $percent: Float, $key: String!) {{
  createSegment(input: {{slug: $slug, rolloutPercent: $percent, description: "of a rollout"}}, idempotencyKey: $key) {{
    segment {{ id }} {ERRORS} }} }}"""
USERS = ["u0", "u1", "u2", "u3", "u4", "u5", "7", "é", "用户-1", "🦊", "a b", "x" * 128]
CURSORS = """query ($id: ID!, $slug: String!) {
  segments(first: 3) { edges { cursor node { members(first: 2) { edges { cursor } } } } }
  tasks(first: 3) { edges { cursor } }
  user(id: $id) { history(first: 4) { edges { cursor node { at } } } }
  segment(slug: $slug) { members(first: 3) { edges { cursor } } } }"""
TASKS = """
    INSERT INTO tasks (kind, status, client, args, attempt, rows_done, rows_total, result, error, started_at,
                       finished_at, file_removed_at, upload, state)
    SELECT CAST(kind AS task_kind), CAST(status AS task_status), 'anonymous', '{"dry_run": false}', 1, 3, total,
           CAST(result AS jsonb), error, now() - begun, now() - ended, now() - removed, NULL, CAST(state AS jsonb)
    FROM (VALUES
        ('REPORT', 'QUEUED', NULL::bigint, NULL, NULL, NULL::interval, NULL::interval, NULL::interval, NULL),
        ('REPORT', 'SUCCEEDED', NULL, :result, NULL, '2 hours', '1 hour', NULL, NULL),
        ('EXPORT', 'SUCCEEDED', NULL, :result, NULL, '2 hours', '1 hour', '1 minute', NULL),
        ('EXPORT', 'FAILED', NULL, NULL, 'It could not be done.', '2 hours', '1 hour', NULL, NULL),
        ('SEGMENT_CLEANUP', 'RUNNING', 4, NULL, NULL, '2 days', NULL, NULL, NULL),
        ('IMPORT', 'RUNNING', NULL, NULL, 'not told', '2 days', NULL, NULL, :state),
        ('IMPORT', 'QUEUED', NULL, NULL, NULL, NULL, NULL, NULL, NULL),
        ('IMPORT', 'CANCELED', NULL, NULL, NULL, NULL, '1 hour', NULL, :state)
    ) AS v (kind, status, total, result, error, begun, ended, removed, state)"""
RESULT = f'{{"attempt": 1, "bytes": 12345678901, "rows": 3, "sha256": "{"a" * 64}"}}'
STATE = """{"lines": 10, "header": 1, "progress": 0.25, "added": 1, "updated": 2, "removed": 3, "unchanged": 1,
            "duplicate": 1, "invalid": 1}"""


async def populate(client: Client, engine: AsyncEngine) -> World:
    slugs = ["A", "B", "C", "a-1", "a_2", "Deleted"]
    await create(client, *slugs)
    for slug, percent in (("R0", 0), ("R50", 50), ("R100", 100)):
        answer = await client.ask(ROLLOUT, slug=slug, percent=percent, key=new_key())
        assert answer["createSegment"]["userErrors"] == []
    for number, user in enumerate(USERS[:-2]):
        await change(client, user, add=slugs[number % 4 :], expiresAt="2090-01-01T00:00:00Z" if number % 3 else None)
    await change(client, "u1", remove=["B", "R100"])
    await change(client, "u2", remove=["R50", "R100", "C"])
    await change(client, "u2", add=["R100", "C"], ttlDays=3)
    await expire(engine, "u3", "a-1")
    for number, user in enumerate(("u4", "u5", "é")):
        soon = datetime.now(UTC) + timedelta(seconds=4 * number + 3)
        await change(client, user, add=["a-1", "a_2"], expiresAt=soon.isoformat())
    await delete(client, "Deleted")
    await create(client, "Again", "Gone")
    await delete(client, "Gone")
    await execute(engine, TASKS, result=RESULT, state=STATE)
    tasks = [str(task_id) for (task_id,) in await execute(engine, "SELECT id FROM tasks ORDER BY id")]
    world = World(USERS, [*slugs, "R0", "R50", "R100", "Again", "Gone", "Nobody"], [*tasks, "7"])
    await _look_around(client, world)
    return world


async def _look_around(client: Client, world: World) -> None:
    found = await client.ask(CURSORS, id="u2", slug="C")
    events = found["user"]["history"]["edges"]
    members = found["segment"]["members"]
    world.cursors |= {
        "segments": _cursors(found["segments"]),
        "tasks": _cursors(found["tasks"]),
        "history": _cursors(found["user"]["history"]),
        "members": _cursors(members),
    }
    world.instants += [edge["node"]["at"] for edge in events]
    world.instants.append("2020-01-01T00:00:00Z")


def _cursors(connection: Any) -> list[str]:
    return [edge["cursor"] for edge in connection["edges"]]
