"""Imports of a segment's members."""

import gzip
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from background import execute, task
from conftest import Client, Serve
from importing import ask_to_import, counts, ended, imported, rejects
from operations import (
    change,
    count,
    create,
    delete,
    differences,
    history,
    memberships,
    slugs,
    state,
)
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from db import segments
from db.cache import Cache
from jobs import uploads


@pytest.fixture
async def client(serve: Serve) -> AsyncIterator[Client]:
    async with serve(serve_tasks=2) as client:
        await create(client, "A")
        yield client


async def members(client: Client, slug: str = "A") -> list[str]:
    found: list[str] = []
    after = None
    while True:
        page = (
            await client.ask(
                """query ($slug: String!, $after: String) { segment(slug: $slug) {
                   members(first: 100, after: $after) { nodes { id } pageInfo { hasNextPage endCursor } } } }""",
                slug=slug,
                after=after,
            )
        )["segment"]["members"]
        found += [node["id"] for node in page["nodes"]]
        if not page["pageInfo"]["hasNextPage"]:
            return found
        after = page["pageInfo"]["endCursor"]


async def test_a_list_of_ids_becomes_members(client: Client, engine: AsyncEngine) -> None:
    await change(client, "u2", add=["A"])
    assert await slugs(client, "u1") == []
    done = await imported(client, "A", "u1\nu2\nu3\n\nu1")
    assert counts(done) == (2, 0, 0, 1, 1, 1)
    assert done["importResult"]["rows"] == 5
    assert done["rowsDone"] == 5
    assert await rejects(client, done) == [(4, "EMPTY"), (5, "DUPLICATE")]
    assert await slugs(client, "u1") == ["A"]
    assert await members(client) == ["u1", "u2", "u3"]
    (event,) = await history(client, "u3")
    assert event["actor"] == "anonymous"
    assert await differences(engine) == []
    assert await execute(engine, "SELECT count(*) FROM pg_class WHERE relname LIKE 'import%'") == [(0,)]


@pytest.mark.parametrize("packed", [False, True])
async def test_every_line_is_accounted_for(client: Client, engine: AsyncEngine, packed: bool) -> None:
    lines = [
        b"\xef\xbb\xbfuser_id,expires_at,ttl_days",
        b"plain,,",
        b'"quoted, with ""both""",,\r',
        b"until,2999-01-01T00:00:00Z,",
        b"days,,7",
        b",,",
        b"x" * 129 + b",,",
        b"nul\x00,,",
        b"\xff\xfe,,",
        b"plain,,",
        b"bad,tomorrow,",
        b"past,2020-01-01T00:00:00Z,",
        b"too few,",
        b'"open,,',
        b'st"ray,,',
        b"carriage\rreturn,,",
        b"both,2999-01-01T00:00:00Z,7",
        b'"quoted",\r,',
        b"days2,,0",
        b"y" * 200_000,
        b"\xf0\x9f\x98\x80,,36500",
        b"'=1+1,,",
        b"back\\slash\\N,,",
    ]
    done = await imported(client, "A", b"\n".join(lines), packed=packed)
    assert counts(done) == (7, 0, 0, 0, 1, 14)
    assert done["importResult"]["rows"] == len(lines) - 1
    assert await rejects(client, done) == [
        (6, "EMPTY"),
        (7, "TOO_LONG"),
        (8, "CONTROL_CHARACTER"),
        (9, "NOT_UTF8"),
        (10, "DUPLICATE"),
        (11, "BAD_EXPIRES_AT"),
        (12, "IN_THE_PAST"),
        (13, "COLUMN_COUNT"),
        (14, "QUOTING"),
        (15, "QUOTING"),
        (16, "CONTROL_CHARACTER"),
        (17, "BAD_TTL_DAYS"),
        (18, "CONTROL_CHARACTER"),
        (19, "BAD_TTL_DAYS"),
        (20, "TOO_LONG"),
    ]
    assert await members(client) == sorted(
        ["plain", 'quoted, with "both"', "until", "days", "\N{GRINNING FACE}", "=1+1", "back\\slash\\N"]
    )
    (until,) = await memberships(client, "until")
    assert until["expiresAt"] == "2999-01-01T00:00:00.000000Z"
    assert await differences(engine) == []


async def test_removing_and_replacing(client: Client, engine: AsyncEngine, redis: Redis) -> None:
    await imported(client, "A", "u1\nu2\nu3\nu4\n")
    done = await imported(client, "A", "u1\nu9\nu1\n", mode="REMOVE")
    assert counts(done) == (0, 0, 1, 1, 1, 0)
    assert await members(client) == ["u2", "u3", "u4"]
    assert [await slugs(client, user) for user in ("u2", "u3", "u7")] == [["A"], ["A"], []]
    before = await state(redis)
    done = await imported(client, "A", "user_id,ttl_days\nu3,\nu4,5\nu7,\nu7,\n,\n", mode="REPLACE")
    # At the first attempt, and without taking the cache from everybody else.
    assert await execute(engine, "SELECT attempt, failures FROM tasks ORDER BY id DESC LIMIT 1") == [(1, 0)]
    assert await state(redis) == before
    assert await redis.exists("segmentql:closed") == 0
    assert counts(done) == (1, 1, 1, 1, 1, 1)
    assert done["rowsDone"] == 5
    assert await members(client) == ["u3", "u4", "u7"]
    assert [await slugs(client, user) for user in ("u2", "u3", "u7")] == [[], ["A"], ["A"]]
    assert await differences(engine) == []


async def test_a_list_without_a_row_that_counts_replaces_nothing(client: Client) -> None:
    await imported(client, "A", "u1\n")
    done = await imported(client, "A", "\n\n", mode="REPLACE")
    assert (done["status"], done["error"]) == ("FAILED", "The file has no row that counts: nothing was changed.")
    assert await members(client) == ["u1"]


@pytest.mark.parametrize(("mode", "expected"), [("ADD", (1, 1, 0, 1, 1, 1)), ("REMOVE", (0, 0, 2, 2, 1, 0))])
async def test_a_dry_run_says_the_same_and_changes_nothing(
    client: Client, engine: AsyncEngine, mode: str, expected: tuple[int, ...]
) -> None:
    await imported(client, "A", "u1\nu2\nu3\n")
    content = "user_id,ttl_days\nu1,\nu2,4\nu5,\nu5,\nbad,x\n"
    before = await count(engine, "membership_events")
    done = await imported(client, "A", content, mode=mode, dryRun=True)
    assert counts(done) == expected
    assert done["importResult"]["dryRun"]
    # Who is removed is so whatever expiry the file tells.
    assert (6, "BAD_TTL_DAYS") in await rejects(client, done) or mode == "REMOVE"
    assert await count(engine, "membership_events") == before
    assert counts(await imported(client, "A", content, mode=mode)) == expected


async def test_a_dry_run_of_a_replacement_counts_who_would_leave(client: Client, engine: AsyncEngine) -> None:
    await imported(client, "A", "u1\nu2\nu3\n")
    content = "u3\nu4\n"
    for dry_run in (True, False):
        done = await imported(client, "A", content, mode="REPLACE", dryRun=dry_run)
        assert counts(done) == (1, 0, 2, 1, 0, 0)
        assert await members(client) == (["u1", "u2", "u3"] if dry_run else ["u3", "u4"])


async def test_a_list_whose_rows_have_all_expired_meanwhile_replaces_nothing(
    client: Client, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await imported(client, "A", "u1\n")

    now = datetime.now(UTC)

    async def days_later(_tx: object, _segment_ids: object) -> datetime:
        return now + timedelta(days=3)

    # They are over when they are applied, and were not when they were read.
    monkeypatch.setattr(segments, "next_instant", days_later)
    expires_at = (now + timedelta(days=2)).isoformat()
    done = await imported(client, "A", "u2\n", mode="REPLACE", expiresAt=expires_at)
    assert (done["status"], done["error"]) == ("FAILED", "The file has no row that counts: nothing was changed.")
    assert await members(client) == ["u1"]
    assert await execute(engine, "SELECT count(*) FROM pg_class WHERE relname LIKE 'import%'") == [(0,)]


async def test_an_import_whose_expiry_has_passed_before_it_begins_fails(client: Client, engine: AsyncEngine) -> None:
    payload = await ask_to_import(client, "A", expiresAt="2999-01-01T00:00:00Z")
    await execute(engine, """UPDATE tasks SET args = args || '{"expires_at": "2020-01-01T00:00:00Z"}'""")
    await client.http.put(payload["task"]["uploadUrl"], content=b"u1\n")
    done = await ended(client, payload["task"]["id"])
    assert done["error"] == "expiresAt had passed when the work began: nothing was changed."


async def test_what_was_committed_before_the_cache_was_told_is_told_by_the_next_attempt(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Cache.invalidate
    failures = iter([True])

    async def broken_once(cache: Cache, user_ids: Sequence[str]) -> None:
        if next(failures, False):
            raise RuntimeError
        await told(cache, user_ids)

    assert await slugs(client, "u1") == []
    monkeypatch.setattr(Cache, "invalidate", broken_once)
    done = await imported(client, "A", "u1\n")
    assert counts(done) == (1, 0, 0, 0, 0, 0)
    assert await slugs(client, "u1") == ["A"]


async def test_a_file_that_unpacks_to_far_too_much_fails_the_import(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "UNPACKED_ANYWAY", 100_000)
    bomb = gzip.compress(b"a\n" * 500_000)
    payload = await ask_to_import(client, "A")
    assert (await client.http.put(payload["task"]["uploadUrl"], content=bomb)).status_code == 200
    done = await ended(client, payload["task"]["id"])
    assert done["error"] == "The file unpacks to more than 100 times its size."


@pytest.mark.parametrize("mode", ["REMOVE", "REPLACE"])
async def test_who_is_removed_by_a_list_is_excluded_from_the_rollout(
    client: Client, engine: AsyncEngine, mode: str
) -> None:
    await client.ask(
        """mutation { updateSegment(slug: "A", input: {rolloutPercent: 100}, idempotencyKey: "all-of-them") {
           userErrors { code } } }"""
    )
    await change(client, "explicit", add=["A"])
    content = "explicit\nhash\n" if mode == "REMOVE" else "hash\n"
    tried = await imported(client, "A", content, mode=mode, dryRun=True)
    done = await imported(client, "A", content, mode=mode)
    assert counts(done) == counts(tried) == ((0, 0, 2, 0, 0, 0) if mode == "REMOVE" else (1, 0, 1, 0, 0, 0))
    assert await slugs(client, "explicit") == await slugs(client, "explicit", "LATEST") == []
    assert await slugs(client, "hash") == ([] if mode == "REMOVE" else ["A"])
    assert counts(await imported(client, "A", "explicit\n")) == (1, 0, 0, 0, 0, 0)
    assert await slugs(client, "explicit") == ["A"]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"user_id,colour\nu1,red\n", "The header has a column 'colour', which nobody knows."),
        (b"user_id,ttl_days,ttl_days\n", "The header has a column twice."),
        (b"\x1f\x8bno gzip", "The file is not whole, or no gzip"),
    ],
)
async def test_a_file_that_makes_no_sense_fails_the_import(client: Client, content: bytes, error: str) -> None:
    done = await imported(client, "A", content)
    assert done["status"] == "FAILED"
    assert done["error"].startswith(error)
    assert await members(client) == []


async def test_a_cut_gzip_fails_the_import_before_anything_is_changed(client: Client) -> None:
    payload = await ask_to_import(client, "A")
    cut = gzip.compress(b"".join(b"user-%d\n" % n for n in range(10_000)))[:-20]
    assert (await client.http.put(payload["task"]["uploadUrl"], content=cut)).status_code == 200
    done = await ended(client, payload["task"]["id"])
    assert (done["status"], done["error"]) == ("FAILED", "The file is not whole: its gzip breaks off.")
    assert await members(client) == []


async def test_a_file_may_be_sent_again_and_another_one_may_not(client: Client) -> None:
    payload = await ask_to_import(client, "A", key="import-key-1")
    again = await ask_to_import(client, "A", key="import-key-1")
    assert (again["replayed"], again["task"]["id"]) == (True, payload["task"]["id"])
    first, second = payload["task"]["uploadUrl"], again["task"]["uploadUrl"]
    answer = await client.http.put(first, content=b"u1\n")
    assert answer.status_code == 200
    assert (await client.http.put(second, content=b"u1\n")).json() == answer.json()
    assert (await client.http.put(second, content=b"u2\n")).status_code == 409
    done = await ended(client, payload["task"]["id"])
    assert done["uploadUrl"] is None
    assert (await client.http.put(second, content=b"u1\n")).status_code == 200
    assert await members(client) == ["u1"]


async def test_nobody_uploads_without_the_link(client: Client) -> None:
    url = (await ask_to_import(client, "A"))["task"]["uploadUrl"]
    address, _, query = url.partition("?")
    other = (await ask_to_import(client, "A"))["task"]["uploadUrl"].partition("?")[0]
    for wrong in (
        address,
        f"{address}?expires=1&signature=x",
        f"{other}?{query}",
        url[:-1],
        url.replace("expires=1", "expires=2"),
    ):
        assert (await client.http.put(wrong, content=b"u1\n")).status_code == 403
        assert (await client.http.get(wrong)).status_code in (403, 404)
    # A link to upload is none to download, even if there is nothing yet.
    assert (await client.http.get(url)).status_code == 403


async def test_a_file_that_is_too_large_is_refused(serve: Serve) -> None:
    async with serve(serve_tasks=1, max_upload_bytes=1_000) as client:
        await create(client, "A")
        url = (await ask_to_import(client, "A"))["task"]["uploadUrl"]

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield b"x" * 500

        assert (await client.http.put(url, content=b"x" * 1_001)).status_code == 413
        assert (await client.http.put(url, content=chunks())).status_code == 413
        assert (await client.http.put(url, content=b"u1\n")).status_code == 200


async def test_an_import_into_a_segment_that_is_deleted_meanwhile_fails(client: Client, engine: AsyncEngine) -> None:
    payload = await ask_to_import(client, "A")
    await delete(client, "A")
    await create(client, "A")
    await client.http.put(payload["task"]["uploadUrl"], content=b"u1\n")
    done = await ended(client, payload["task"]["id"])
    assert (done["status"], done["error"]) == ("FAILED", "The segment was deleted.")
    assert await members(client) == []


@pytest.mark.parametrize(
    ("input", "code", "path"),
    [
        ({"slug": "NONE"}, "SEGMENT_NOT_FOUND", ["input", "slug"]),
        ({"slug": "no slug"}, "INVALID", ["input", "slug"]),
        ({"slug": "A", "ttlDays": 0}, "INVALID", ["input", "ttlDays"]),
        ({"slug": "A", "expiresAt": "2020-01-01T00:00:00Z"}, "INVALID", ["input", "expiresAt"]),
    ],
)
async def test_what_is_wrong_is_named(client: Client, input: Any, code: str, path: list[str]) -> None:
    payload = await ask_to_import(client, **input)
    assert [(error["code"], error["path"]) for error in payload["userErrors"]] == [(code, path)]


async def test_an_import_without_a_file_can_be_called_off(client: Client) -> None:
    payload = await ask_to_import(client, "A")
    assert payload["task"]["status"] == "QUEUED"
    await client.ask(
        'mutation ($id: ID!) { cancelTask(id: $id, idempotencyKey: "call-it-off") { userErrors { code } } }',
        id=payload["task"]["id"],
    )
    assert (await client.http.put(payload["task"]["uploadUrl"], content=b"u1\n")).status_code == 409
    assert (await task(client, payload["task"]["id"]))["status"] == "CANCELED"


async def test_expiries_of_rows_win_over_that_of_the_import(client: Client) -> None:
    await imported(client, "A", "user_id,expires_at\nu1,\nu2,2999-01-01T00:00:00+02:00\n", ttlDays=5)
    (first,), (second,) = await memberships(client, "u1"), await memberships(client, "u2")
    assert first["expiresAt"] is not None
    assert second["expiresAt"] == "2998-12-31T22:00:00.000000Z"
