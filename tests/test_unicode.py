"""Ids, slugs, keys and descriptions of Unicode's worst: kept to the byte wherever they go, or refused by name."""

import csv
import io
import json
import unicodedata
from collections.abc import AsyncIterator
from typing import Any

import pytest
from background import download, execute, finished, lines, report
from conftest import Client, Serve
from fuzzing.texts import TEXTS
from importing import counts, imported
from operations import (
    CHANGE,
    CREATE,
    MEMBERSHIPS,
    change,
    count,
    create,
    differences,
    history,
    new_key,
    slugs,
)
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

EXPORT = """mutation ($slug: String!, $key: String!) {
  exportMembers(input: {slug: $slug}, idempotencyKey: $key) { task { id } userErrors { code } } }"""
MEMBERS = """query ($after: String) { segment(slug: "A") { members(first: 1, after: $after) {
  nodes { id } edges { node { id } } pageInfo { hasNextPage endCursor } } } }"""
SURROGATES = [text for text in TEXTS.values() if any(unicodedata.category(letter) == "Cs" for letter in text)]
WHOLE = [text for text in TEXTS.values() if text not in SURROGATES]


def is_id(text: str) -> bool:
    """By what the contract says, and not by how the service finds out."""
    return 1 <= len(text) <= 128 and not any(unicodedata.category(letter) == "Cc" for letter in text)


IDS = [text for text in WHOLE if is_id(text)]


@pytest.fixture
async def client(serve: Serve) -> AsyncIterator[Client]:
    async with serve(serve_tasks=2) as client:
        await create(client, "A", "B")
        yield client


def literals(text: str) -> tuple[str, str]:
    """As it may stand in a document: all in escapes, and in as few as can be."""
    return json.dumps(text), json.dumps(text, ensure_ascii=False)


def defused(text: str) -> str:
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "'")) else text


async def test_an_id_is_one_and_the_same_wherever_it_goes(client: Client, engine: AsyncEngine, redis: Redis) -> None:
    assert {"é", "e\u0301", "\u212b", "\xc5", "🦊" * 128, "\uffff", "\u2028"} <= {*IDS} | {"\uffff", "\u2028"}
    for user in IDS:
        payload = await change(client, user, add=["A"])
        assert (payload["added"], payload["user"]["id"]) == (["A"], user)
        assert await slugs(client, user) == ["A"]
        (event,) = await history(client, user)
        assert (event["userId"], event["slug"], event["action"]) == (user, "A", "ADDED")
    # From the cache and past it, and as what stands in a document.
    for user in IDS:
        asked = " ".join(
            f"{name}: user(id: {literal}) {{ id segments(freshness: {freshness}) {{ slug }} }}"
            for name, literal, freshness in zip("ab", literals(user), ("CACHED", "LATEST"), strict=True)
        )
        expected = {"id": user, "segments": [{"slug": "A"}]}
        assert await client.ask(f"{{ {asked} }}") == {"a": expected, "b": expected}
    encoded = sorted(user.encode() for user in IDS)
    for table in ("memberships", "membership_events"):
        stored = await execute(engine, f"SELECT convert_to(user_id, 'UTF8') FROM {table}")
        assert sorted(bytes(row[0]) for row in stored) == encoded
    assert sorted(await redis.keys("segmentql:user:*")) == [b"segmentql:user:" + user for user in encoded]
    assert await differences(engine) == []


async def test_so_it_is_in_cursors_files_and_imports(client: Client, engine: AsyncEngine) -> None:
    assert counts(await imported(client, "A", written(IDS))) == (len(IDS), 0, 0, 0, 0, 0)
    ordered = sorted(IDS, key=str.encode)
    assert await pages(client) == ordered
    reported = await report(client)
    assert [line[0] for line in lines(reported)] == [defused(user) for user in ordered]
    exported = await export(client, "A")
    header, *rows = csv.reader(io.StringIO(exported.decode(), newline=""))
    assert header == ["user_id", "added_at", "expires_at"]
    assert [row[0] for row in rows] == [defused(user) for user in ordered]
    # What was put in front of a formula is taken away again.
    assert counts(await imported(client, "B", exported)) == (len(IDS), 0, 0, 0, 0, 0)
    both = await execute(engine, "SELECT convert_to(user_id, 'UTF8'), count(*) FROM memberships GROUP BY user_id")
    assert sorted((bytes(user), number) for user, number in both) == [(user.encode(), 2) for user in ordered]
    assert await differences(engine) == []


def written(ids: list[str]) -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file).writerows([["user_id"], *([defused(user)] for user in ids)])
    return file.getvalue().encode()


async def pages(client: Client) -> list[str]:
    """The members, one on each page."""
    found, after = [], None
    while True:
        page = (await client.ask(MEMBERS, after=after))["segment"]["members"]
        assert [edge["node"] for edge in page["edges"]] == page["nodes"]
        found += [node["id"] for node in page["nodes"]]
        if not page["pageInfo"]["hasNextPage"]:
            return found
        after = page["pageInfo"]["endCursor"]


async def export(client: Client, slug: str) -> bytes:
    payload = (await client.ask(EXPORT, slug=slug, key=new_key()))["exportMembers"]
    assert payload["userErrors"] == []
    task = await finished(client, payload["task"]["id"])
    answer = await client.ask("query ($id: ID!) { task(id: $id) { status file { url bytes sha256 } } }", id=task["id"])
    return await download(client, answer["task"])


async def test_what_is_no_id_is_refused_by_name_and_changes_nothing(client: Client, engine: AsyncEngine) -> None:
    wrong = [text for text in WHOLE if not is_id(text)]
    assert len(wrong) > 10
    before = await count(engine, "operations")
    for user in wrong:
        payload = await change(client, user, add=["A"])
        assert refused(payload) == [("INVALID", ["input", "userId"])]
        for literal in literals(user):
            document = (
                f'mutation {{ changeUserSegments(input: {{userId: {literal}, add: "A"}}, idempotencyKey: "12345678")'
            )
            answer = await client.ask(f"{document} {{ userErrors {{ code path }} }} }}")
            assert refused(answer["changeUserSegments"]) == [("INVALID", ["input", "userId"])]
            answer = await client.post(f"{{ user(id: {literal}) {{ id }} }}")
            assert codes(answer) == ["BAD_USER_INPUT"]
        bulk = 'mutation ($u: [ID!]!) { addUsersToSegment(input: {slug: "A", userIds: $u}, idempotencyKey: "12345678")'
        answer = await client.ask(f"{bulk} {{ userErrors {{ code path }} }} }}", u=["fine", user])
        assert refused(answer["addUsersToSegment"]) == [("INVALID", ["input", "userIds", "1"])]
        assert codes(await client.post(MEMBERSHIPS, {"id": user})) == ["BAD_USER_INPUT"]
    assert await count(engine, "memberships") == await count(engine, "membership_events") == 0
    assert await count(engine, "operations") == before


async def test_half_of_a_surrogate_pair_is_no_text(client: Client, engine: AsyncEngine) -> None:
    before = await count(engine, "operations")
    for user in SURROGATES:
        for query, variables in (
            (CHANGE, {"input": {"userId": user, "add": ["A"]}, "key": new_key()}),
            (f"{{ user(id: {json.dumps(user)}) {{ id }} }}", {}),
        ):
            body = json.dumps({"query": query, "variables": variables})
            # So long a number has another parser read the body, and that takes them.
            for sent in (body, body.replace("{", '{"n": 12345678901234567890, ', 1)):
                response = await client.http.post(
                    "/graphql", content=sent, headers={"Content-Type": "application/json"}
                )
                found = response.json()
                payload = (found.get("data") or {}).get("changeUserSegments")
                if payload is None:
                    assert codes(found)[0] in ("BAD_USER_INPUT", "GRAPHQL_PARSE_FAILED")
                else:
                    assert refused(payload) == [("INVALID", ["input", "userId"])]
    assert await count(engine, "memberships") == 0
    assert await count(engine, "operations") == before


async def test_a_slug_has_letters_of_ascii_alone(client: Client, engine: AsyncEngine) -> None:
    before = await count(engine, "segments")
    made = []
    for slug in WHOLE:
        payload = (await client.ask(CREATE, slug=slug, key=new_key()))["createSegment"]
        if refused(payload):
            assert refused(payload) == [("INVALID", ["input", "slug"])]
            found = await client.post("query ($s: String!) { segment(slug: $s) { slug } }", {"s": slug})
            assert found.get("data") == {"segment": None} or codes(found) == ["BAD_USER_INPUT"]
            assert refused(await change(client, "u", add=[slug])) in (
                [("SEGMENT_NOT_FOUND", ["input", "add", "0"])],
                [("INVALID", ["input", "add", "0"])],
            )
        else:
            assert payload["segment"]["slug"] == slug
            made.append(slug)
    assert made == ["x" * 128, "x" * 129, "null"]
    stored = await execute(engine, "SELECT convert_to(slug, 'UTF8') FROM segments")
    assert len(stored) == before + len(made)
    assert {bytes(row[0]).decode() for row in stored} == {"A", "B", *made}
    assert await count(engine, "memberships") == 0


async def test_a_key_is_what_can_be_printed_of_ascii(client: Client, engine: AsyncEngine) -> None:
    kept = []
    for text in WHOLE:
        key = f"{text}-of-eight "
        good = key.isascii() and key.isprintable() and len(key) <= 128
        payload = await change(client, "u", key=key, add=["A"])
        if good:
            kept.append(key)
            assert refused(payload) == []
            assert (await change(client, "u", key=key, add=["A"]))["replayed"]
            # Another one, if only by its last letter.
            assert not (await change(client, "u", key=key.rstrip(), add=["A"]))["replayed"]
            kept.append(key.rstrip())
        else:
            assert refused(payload) == [("IDEMPOTENCY_KEY_INVALID", ["idempotencyKey"])]
    stored = await execute(
        engine, "SELECT convert_to(idempotency_key, 'UTF8') FROM operations WHERE kind = 'changeUserSegments'"
    )
    assert sorted(bytes(row[0]) for row in stored) == sorted(key.encode() for key in kept)
    assert len(kept) > 20


async def test_a_description_is_kept_to_the_byte(client: Client, engine: AsyncEngine) -> None:
    kept = {}
    for number, text in enumerate([*WHOLE, "🦊" * 2_000, "🦊" * 2_001]):
        good = len(text) <= 2_000 and not any(
            unicodedata.category(letter) == "Cc" and letter not in "\t\r\n" for letter in text
        )
        slug = f"D{number}"
        if number % 3:
            # As what stands in the document.
            call = f'createSegment(input: {{slug: "{slug}", description: {literals(text)[number % 3 - 1]}}}'
            selected = 'idempotencyKey: "12345678-{slug}") { segment { description } userErrors { code path } }'
            answer = await client.ask(f"mutation {{ {call}, {selected.replace('{slug}', slug)} }}")
        else:
            answer = await client.ask(CREATE, slug=slug, description=text, key=new_key())
        payload = answer["createSegment"]
        assert refused(payload) == ([] if good else [("INVALID", ["input", "description"])])
        if good:
            kept[slug] = text
            assert payload["segment"]["description"] == text
    found = await client.ask('{ segments(first: 100, filter: {slugPrefix: "D"}) { nodes { slug description } } }')
    assert {node["slug"]: node["description"] for node in found["segments"]["nodes"]} == kept
    stored = await execute(engine, "SELECT slug, convert_to(description, 'UTF8') FROM segments WHERE slug LIKE 'D%'")
    assert {slug: bytes(text).decode() for slug, text in stored} == kept


def refused(payload: Any) -> list[tuple[str, list[str]]]:
    return [(error["code"], error["path"]) for error in payload["userErrors"]]


def codes(answer: Any) -> list[str]:
    return [error["extensions"]["code"] for error in answer["errors"]]
