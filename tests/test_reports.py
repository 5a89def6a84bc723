"""Reports: what is in them, and that it stays the same whatever has been tidied."""

import asyncio
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from background import ask_for_report, download, execute, finished, lines, report
from conftest import Client, Serve
from operations import change, change_within, count, create, database_clock, delete, expire, history, new_key
from sqlalchemy.ext.asyncio import AsyncEngine

from db.files import Files
from jobs.purge import Retention, by_hand


@pytest.fixture
async def client(serve: Serve) -> Any:
    async with serve(serve_tasks=2) as client:
        yield client


def brief(content: bytes) -> list[str]:
    return [" ".join(line[:3]) for line in lines(content)]


async def test_a_report_has_every_event_ordered_by_user_then_instant(client: Client, engine: AsyncEngine) -> None:
    await create(client, "A", "B")
    await change(client, "10", add=["A", "B"])
    await change(client, "9", add=["B"], ttlDays=2)
    await change(client, "9", add=["B"], ttlDays=3)
    await change(client, "10", remove=["A"])
    content = await report(client)
    assert brief(content) == ["10 A ADDED", "10 B ADDED", "10 A REMOVED", "9 B ADDED", "9 B EXPIRY_CHANGED"]
    events = [event for user in ("10", "9") for event in reversed(await history(client, user))]
    assert lines(content) == [(event["userId"], event["slug"], event["action"], event["at"]) for event in events]


async def test_a_report_is_csv_after_rfc_4180(client: Client) -> None:
    await create(client, "A")
    await change(client, 'a "b", ü', add=["A"])
    ((_, _, _, at),) = lines(content := await report(client))
    assert content == f'user_id,segment,operation,at\r\n"a ""b"", ü",A,ADDED,{at}\r\n'.encode()
    assert at == (await history(client, 'a "b", ü'))[0]["at"]


async def test_what_a_spreadsheet_would_run_is_defused_and_can_be_had_back(client: Client) -> None:
    users = ["=1+1", "+1", "-1", "@a", "'a", "1=1", "a-b"]
    await create(client, "A")
    for user in users:
        await change(client, user, add=["A"])
    found = [line[0] for line in lines(await report(client))]
    assert sorted(found) == sorted(["'=1+1", "'+1", "'-1", "'@a", "''a", "1=1", "a-b"])
    assert {user.removeprefix("'") if user[0] == "'" else user for user in found} == set(users)


async def test_the_period_begins_with_from_and_ends_before_to(client: Client) -> None:
    await create(client, "A", "B", "C")
    for slug in ("A", "B", "C"):
        await change(client, 7, add=[slug])
    first, second, third = [event["at"] for event in reversed(await history(client, 7))]
    assert brief(await report(client, from_=first, to=third)) == ["7 A ADDED", "7 B ADDED"]
    assert brief(await report(client, from_=second)) == ["7 B ADDED", "7 C ADDED"]
    assert brief(await report(client, to=second)) == ["7 A ADDED"]


async def test_a_report_of_some_users_and_some_segments(client: Client) -> None:
    await create(client, "A", "B")
    for user in (1, 2, 3):
        await change(client, user, add=["A", "B"])
    await delete(client, "B")
    await create(client, "B")
    await change(client, 1, add=["B"])
    assert brief(await report(client, userIds=[3, "2", 3, "nobody"], segments=["A"])) == ["2 A ADDED", "3 A ADDED"]
    # A slug stands for every segment that had it.
    found = brief(await report(client, userIds=[1], segments=["B", "B"]))
    assert found == ["1 B ADDED", "1 B SEGMENT_DELETED", "1 B ADDED"]


async def test_a_period_without_events_has_a_header_alone(client: Client) -> None:
    await create(client, "A")
    await change(client, 7, add=["A"])
    for period in (
        {"from_": "0001-01-01T00:00:00Z", "to": "1999-01-01T00:00:00Z"},
        {"from_": "9999-01-01T00:00:00Z", "to": "9999-12-31T00:00:00Z"},
    ):
        payload = await ask_for_report(client, **period)
        found = await finished(client, payload["task"]["id"])
        assert await download(client, found) == b"user_id,segment,operation,at\r\n"
        assert (found["file"]["rows"], found["rowsDone"]) == (0, 0)


async def test_the_same_report_before_and_after_a_purge_and_a_cleanup(
    serve: Serve, engine: AsyncEngine, tmp_path: Path
) -> None:
    async with serve() as client:  # nothing tidies
        await create(client, "A", "B", "C", "D")
        for user in range(20):
            await change(client, user, add=["A", "B", "C"], ttlDays=1)
            await change(client, user, add=["D"])
        for user in range(0, 20, 2):
            await expire(engine, str(user), "A", 100)
            # Expired before its segment was deleted, or would have later.
            await expire(engine, str(user), "B", 50)
            await expire(engine, str(user + 1), "C", -3600)
        await change(client, 0, add=["A"])
        await delete(client, "B")
        await delete(client, "C")
    closed = (await database_clock(engine)).isoformat()
    files = Files(str(tmp_path / "files"))
    files.prepare()
    async with serve() as idle:
        tidied = {"memberships": await count(engine, "memberships")}
        assert tidied == {"memberships": 80}
        payload = await ask_for_report(idle, to=closed)
        assert payload["task"]["status"] == "QUEUED"
        # A worker that takes reports alone: the cleanups stay.
        await execute(engine, "UPDATE tasks SET run_after = 'infinity' WHERE kind = 'SEGMENT_CLEANUP'")
        await execute(
            engine,
            """INSERT INTO job_runs (job, slot, state, runner, started_at, heartbeat_at, finished_at)
               VALUES ('purge', date_trunc('day', now(), 'UTC'), 'FINISHED', 'test', now(), now(), now())""",
        )
    async with serve(serve_tasks=2) as client:
        before = await download(client, await finished(client, payload["task"]["id"]))
        assert await count(engine, "memberships") == 80
        assert len(lines(before)) == 20 * 4 + 1 + 10 + 20 + 20
        stats = await by_hand(engine, files, Retention(24, 7, 30, None))
        assert stats["memberships"] == 9 + 10
        assert await report(client, to=closed) == before
        await execute(engine, "UPDATE tasks SET run_after = now() WHERE kind = 'SEGMENT_CLEANUP'")
        while await execute(engine, "SELECT 1 FROM segments WHERE deleted_at IS NOT NULL AND cleaned_at IS NULL"):
            await asyncio.sleep(0.05)
        assert await count(engine, "memberships") == 20 + 11
        assert await report(client, to=closed) == before


async def test_a_report_waits_for_events_that_are_on_their_way(client: Client, engine: AsyncEngine) -> None:
    await create(client, "A")
    async with engine.begin() as tx:
        await change_within(tx, "7", add=["A"])
        payload = await ask_for_report(client)
        for _ in range(10):
            status = (await client.ask("{ tasks { nodes { status } } }"))["tasks"]["nodes"]
            assert status in ([{"status": "QUEUED"}], [{"status": "RUNNING"}])
            await asyncio.sleep(0.02)
    assert brief(await download(client, await finished(client, payload["task"]["id"]))) == ["7 A ADDED"]


async def test_a_retried_request_makes_one_report(client: Client, engine: AsyncEngine) -> None:
    key = new_key()
    answers = await asyncio.gather(*(ask_for_report(client, key=key) for _ in range(20)))
    assert len({answer["task"]["id"] for answer in answers}) == 1
    assert sorted(answer["replayed"] for answer in answers) == [False] + [True] * 19
    assert await count(engine, "tasks") == 1
    other = await ask_for_report(client, key=key, to=datetime.now().astimezone().isoformat())
    assert [error["code"] for error in other["userErrors"]] == ["IDEMPOTENCY_KEY_REUSED"]


@pytest.mark.parametrize(
    ("input", "errors"),
    [
        ({"from_": "2026-01-01T00:00:00Z", "to": "2026-01-01T00:00:00Z"}, [("INVALID", "to")]),
        ({"from_": "2026-01-01T00:00:00.000001Z", "to": "2026-01-01T00:00:00Z"}, [("INVALID", "to")]),
        ({"from_": "2999-01-01T00:00:00Z"}, [("INVALID", "from")]),
        ({"userIds": []}, [("INVALID", "userIds")]),
        ({"segments": []}, [("INVALID", "segments")]),
        ({"userIds": ["1", "", "x" * 129]}, [("INVALID", "userIds", "1"), ("INVALID", "userIds", "2")]),
        ({"segments": ["A", "NO", "no slug"]}, [("INVALID", "segments", "2")]),
        ({"segments": ["NO", "A", "NEITHER"]}, [("SEGMENT_NOT_FOUND", "segments", i) for i in ("0", "2")]),
        ({"userIds": list(range(10_001))}, [("TOO_MANY_ITEMS", "userIds")]),
        ({"segments": ["A"] * 10_001}, [("TOO_MANY_ITEMS", "segments")]),
    ],
)
async def test_a_bad_request_is_refused_and_uses_no_key(
    client: Client, engine: AsyncEngine, input: dict[str, Any], errors: list[tuple[str, ...]]
) -> None:
    await create(client, "A")
    key = new_key()
    payload = await ask_for_report(client, key=key, **input)
    found = [(error["code"], *error["path"]) for error in payload["userErrors"]]
    assert found == [(code, "input", *path) for code, *path in errors]
    assert payload["task"] is None
    assert await count(engine, "tasks") == 0
    assert (await ask_for_report(client, key=key))["replayed"] is False


async def test_ten_thousand_users_are_not_too_many(client: Client) -> None:
    await create(client, "A")
    await change(client, 9_999, add=["A"])
    assert brief(await report(client, userIds=list(range(10_000)))) == ["9999 A ADDED"]


async def test_two_reports_of_a_closed_period_are_the_same_bytes(client: Client, engine: AsyncEngine) -> None:
    await create(client, "A", "B")
    for user in range(50):
        await change(client, user, add=["A", "B"])
    until = (await database_clock(engine)).isoformat()

    async def go_on() -> None:
        for user in range(50):
            await change(client, user, remove=["A"])

    going, first = asyncio.create_task(go_on()), await report(client, to=until)
    await going
    assert await report(client, to=until) == first
    assert len(lines(first)) == 100
    assert len(lines(await report(client, to=(await database_clock(engine) + timedelta(days=1)).isoformat()))) == 150
