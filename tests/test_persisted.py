"""A document that was sent once is named by its hash from then on, and answered as if it had been sent in full."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from breaking import Valkey
from comparing import Connection, counted
from conftest import Client, Serve
from operations import CHANGE, CREATE, SEGMENTS, change, create, new_key
from persisting import (
    GRAPHQL,
    JSON,
    KEYS,
    NAMED,
    NOT_A_HASH,
    NOT_FOUND,
    asking,
    by_hash,
    hashed,
    in_full,
    post,
    refused,
)
from redis.asyncio import Redis
from subscribing import USER, socket
from test_metrics import Change

from db import persisted as shared
from server import documents, persisted


async def until(holds: Callable[[], Any]) -> None:
    for _ in range(500):
        if await holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it does not come to that")


async def shared_is(redis: Redis, text: str) -> None:
    """Wait until Redis has the document: nobody who sends it does."""

    async def is_there() -> bool:
        return bool(await redis.hexists(KEYS[0], hashed(text)))

    await until(is_there)


async def test_a_miss_is_told_and_the_same_document_known_once_it_was_sent(client: Client, redis: Redis) -> None:
    for accept, status in ((JSON, 200), (GRAPHQL, 400)):
        response = await post(client, by_hash(NAMED, id=7), accept)
        assert (response.status_code, response.json()) == (status, NOT_FOUND)
    answer = {"data": {"user": {"id": "7", "segments": []}}}
    assert (await post(client, in_full(NAMED, id=7))).json() == answer
    for accept in (JSON, GRAPHQL):
        response = await post(client, by_hash(NAMED, id=7), accept)
        assert (response.status_code, response.json()) == (200, answer)
    await shared_is(redis, NAMED)
    assert await redis.hgetall(KEYS[0]) == {hashed(NAMED).encode(): NAMED.encode()}


async def test_get_names_documents_too_and_a_mutation_stays_one_of_post(client: Client) -> None:
    def url(request: dict[str, Any]) -> dict[str, str]:
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in request.items()}

    # Whoever opens such a link in a browser is not asking for GraphiQL.
    headers = {"Accept": f"text/html,{GRAPHQL};q=0.9,*/*;q=0.8"}
    missing = await client.http.get("/graphql", params=url(by_hash(NAMED, id=7)), headers=headers)
    assert (missing.status_code, missing.json()) == (400, NOT_FOUND)
    sent = await client.http.get("/graphql", params=url(in_full(NAMED, id=7)), headers=headers)
    found = await client.http.get("/graphql", params=url(by_hash(NAMED, id=7)), headers=headers)
    assert sent.content == found.content == b'{"data":{"user":{"id":"7","segments":[]}}}'
    assert "cache-control" not in found.headers or found.headers["cache-control"] == sent.headers["cache-control"]
    documented = {"documentId": f"sha256:{hashed(NAMED)}", "variables": '{"id": "7"}'}
    assert (await client.http.get("/graphql", params=documented, headers=headers)).content == found.content
    await post(client, in_full(CREATE, slug="A", description=None, key=new_key()))
    response = await client.http.get("/graphql", params=url(by_hash(CREATE, slug="B", key=new_key())))
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


async def test_answers_are_byte_for_byte_those_of_the_document_in_full(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: Counter[str] = counted(monkeypatch)
    key = new_key()
    asked: list[tuple[str, dict[str, Any]]] = [
        (NAMED, {"id": 7}),
        (SEGMENTS, {"id": "7"}),
        (SEGMENTS, {"id": None}),
        (SEGMENTS, {"id": "7", "freshness": "YESTERDAY"}),
        (CREATE, {"slug": "A", "description": None, "key": key}),
        (CHANGE, {"input": {"userId": "7", "add": [{"slug": "B"}]}, "key": key}),
        ('{ user(id: 7) { id } segment(slug: "A") { slug } }', {"unused": 1}),
    ]
    async with serve() as client, Connection(client) as connection:
        await create(client, "A")
        await change(client, "7", add=["A"])
        for text, variables in asked:
            full = json.dumps({"query": text, "variables": variables}).encode()
            kept = await connection.post(json.dumps(in_full(text, **variables)).encode())
            plain = await connection.post(full)
            assert kept.status == plain.status
            for _ in range(3):
                named = await connection.post(json.dumps(by_hash(text, **variables)).encode())
                document = {"documentId": f"sha256:{hashed(text)}", "variables": variables}
                other = await connection.post(json.dumps(document).encode())
                assert named.comparable == other.comparable == plain.comparable, text
                assert (await connection.post(full)).comparable == plain.comparable
    # Three that are right, asked for in ten ways and times: on the short way, too.
    assert planned["plan"] == 3 * 10


async def test_what_else_the_extensions_say_keeps_nothing_from_the_short_way_but_the_cost(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = counted(monkeypatch)
    await post(client, in_full(NAMED, id=7))
    request = by_hash(NAMED, id=7)
    request["extensions"]["clientLibrary"] = {"name": "@apollo/client", "version": "4.3.8"}
    assert (await post(client, request)).json() == {"data": {"user": {"id": "7", "segments": []}}}
    assert planned == {"plan": 1}
    request["extensions"]["cost"] = True
    answer = (await post(client, request)).json()
    assert answer["extensions"]["cost"]["requested"] >= 1
    assert planned == {"plan": 1}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"extensions": {"persistedQuery": 1}}, "extensions.persistedQuery must be an object."),
        ({"extensions": {"persistedQuery": []}}, "extensions.persistedQuery must be an object."),
        ({"extensions": {"persistedQuery": {}}}, "extensions.persistedQuery.version must be 1."),
        (
            {"extensions": {"persistedQuery": {"version": 2, "sha256Hash": hashed(NAMED)}}},
            "extensions.persistedQuery.version must be 1.",
        ),
        (
            {"extensions": {"persistedQuery": {"version": 1, "sha256Hash": 5}}},
            "extensions.persistedQuery.sha256Hash must be a string.",
        ),
        (
            {"extensions": {"persistedQuery": {"version": 1, "sha256Hash": hashed(NAMED).upper()}}},
            f"extensions.persistedQuery.sha256Hash {NOT_A_HASH}",
        ),
        (
            {"documentId": "abc"},
            f"documentId {NOT_A_HASH}",
        ),
        (
            {"query": f"{NAMED} ", "extensions": {"persistedQuery": {"version": 1, "sha256Hash": hashed(NAMED)}}},
            "extensions.persistedQuery.sha256Hash is not the SHA-256 of query.",
        ),
        ({"query": f"{NAMED} ", "documentId": hashed(NAMED)}, "documentId is not the SHA-256 of query."),
        (
            {"documentId": hashed(SEGMENTS), **by_hash(NAMED)},
            "documentId and extensions.persistedQuery.sha256Hash name different documents.",
        ),
    ],
)
async def test_a_name_that_is_not_as_it_should_be_is_refused_and_nothing_kept(
    client: Client, redis: Redis, given: dict[str, Any], message: str
) -> None:
    assert await refused(client, {"variables": {"id": 7}, **given}, "BAD_USER_INPUT") == message
    assert await redis.exists(*KEYS) == 0


async def test_a_text_is_a_string_beside_a_name_too(client: Client) -> None:
    await post(client, in_full(NAMED, id=7))
    queries: list[Any] = [0, False, [], {}]
    for query in queries:
        for _ in range(2):
            response = await post(client, {**by_hash(NAMED, id=7), "query": query})
            assert response.status_code == 400
            assert response.json()["errors"][0]["message"] == "query must be a string or null."


async def test_a_document_id_is_a_string(client: Client) -> None:
    response = await post(client, {"documentId": 5, "query": NAMED, "variables": {"id": 7}})
    assert (response.status_code, response.json()["errors"][0]["message"]) == (
        400,
        "documentId must be a string or null.",
    )


async def test_only_what_is_valid_paid_for_and_short_is_kept(serve: Serve, redis: Redis) -> None:
    long = NAMED.ljust(documents.LONGEST_CACHED + 1)
    wrong = ("{", "{ nowhere }", "{ user(id: 1) { ...F } }", "query A { __typename } query B { __typename }")
    async with serve(rate_limit=1, rate_burst=200) as client:
        for text in wrong:
            assert "errors" in (await post(client, in_full(text))).json()
        for _ in range(2):
            assert "errors" not in (await post(client, in_full(long, id=7))).json()
            assert (await post(client, by_hash(long, id=7))).json() == NOT_FOUND
        dear = "query ($ids: [ID!]!) { users(ids: $ids) { history(first: 100) { nodes { at } } } }"
        for _ in range(3):
            response = await post(client, in_full(dear, ids=list(map(str, range(100)))))
            assert response.json()["errors"][0]["extensions"]["code"] in ("LIMIT_EXCEEDED", "RATE_LIMITED")
    assert await redis.exists(*KEYS) == 0


async def test_processes_share_documents(serve: Serve, redis: Redis) -> None:
    found = Change("segmentql_persisted_documents_total", result="redis")
    own = Change("segmentql_persisted_documents_total", result="process")
    missing = Change("segmentql_persisted_documents_total", result="missing")
    async with serve() as one, serve() as other:
        assert (await post(other, by_hash(NAMED, id=7))).json() == NOT_FOUND
        answer = (await post(one, in_full(NAMED, id=7))).json()
        await shared_is(redis, NAMED)
        for _ in range(3):
            assert (await post(other, by_hash(NAMED, id=7))).json() == answer
    assert (missing.by, found.by, own.by) == (1, 1, 2)


async def test_what_redis_holds_under_a_hash_has_to_be_its_document(client: Client, redis: Redis) -> None:
    await redis.hset(KEYS[0], hashed(NAMED), "{ segments { nodes { slug } } }")
    assert (await post(client, by_hash(NAMED, id=7))).json() == NOT_FOUND
    await redis.hset(KEYS[0], hashed(NAMED), b"\xff")
    assert (await post(client, by_hash(NAMED, id=7))).json() == NOT_FOUND
    await redis.flushall()
    await redis.set(KEYS[0], "of another type")
    assert (await post(client, by_hash(NAMED, id=7))).json() == NOT_FOUND
    assert "errors" not in (await post(client, in_full(NAMED, id=7))).json()


async def test_without_redis_each_process_knows_its_own(serve: Serve, valkey: Valkey) -> None:
    async with serve(redis_url=valkey.url) as client:
        await post(client, in_full(NAMED, id=7))
        valkey.kill()
        assert (await post(client, by_hash(NAMED, id=7))).json() == {"data": {"user": {"id": "7", "segments": []}}}
        assert (await post(client, by_hash(SEGMENTS, id=7))).json() == NOT_FOUND
        assert (await post(client, in_full(SEGMENTS, id=7))).json() == {"data": {"user": {"segments": []}}}
        assert (await post(client, by_hash(SEGMENTS, id=7))).json() == {"data": {"user": {"segments": []}}}


async def test_redis_keeps_so_many_documents_and_bytes_and_those_used_last(
    client: Client, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def kept() -> list[str]:
        return sorted(text.decode() for text in (await redis.hgetall(KEYS[0])).values() if isinstance(text, bytes))

    async def size_of_all() -> bytes | str | None:
        return await redis.get(KEYS[2])

    texts = [f"{{ a{number}: __typename }}" for number in range(8)]
    size = len(texts[0])
    monkeypatch.setattr(shared, "MOST", 3)
    for text in texts[:4]:
        await post(client, in_full(text))
        await shared_is(redis, text)
        # What was used at the same second is told apart by its hash: each is a second older than the next.
        await redis.zincrby(KEYS[1], -10 + texts.index(text), hashed(text))
    assert await kept() == texts[1:4]
    monkeypatch.setattr(shared, "MOST_BYTES", 2 * size)
    await post(client, in_full(texts[4]))
    await shared_is(redis, texts[4])
    assert await kept() == texts[3:5]
    assert await size_of_all() == str(2 * size).encode()
    assert [86_300 < await redis.ttl(key) <= 86_400 for key in KEYS] == [True] * 3
    # A day later.
    await redis.zincrby(KEYS[1], -90_000, hashed(texts[3]))
    monkeypatch.setattr(shared, "MOST_BYTES", 3 * size)
    await post(client, in_full(texts[5]))
    await shared_is(redis, texts[5])
    assert await kept() == texts[4:6]
    # Redis itself has pushed a key out.
    await redis.unlink(KEYS[1])
    await post(client, in_full(texts[6]))
    await shared_is(redis, texts[6])
    assert (await kept(), await size_of_all()) == ([texts[6]], str(size).encode())


async def test_use_keeps_a_document_in_redis(client: Client, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    await post(client, in_full(NAMED, id=7))
    await shared_is(redis, NAMED)
    await redis.flushall()
    await post(client, by_hash(NAMED, id=7))
    assert await redis.exists(*KEYS) == 0
    monkeypatch.setattr(persisted, "TELL_SECONDS", -1)
    await post(client, by_hash(NAMED, id=7))
    await shared_is(redis, NAMED)


def test_a_process_keeps_so_many_documents_and_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    known = persisted.Persisted(automatic=True)
    for number in range(3 * persisted.MOST):
        known._remember(str(number), str(number), 0)
    assert list(known._kept) == [str(number) for number in range(2 * persisted.MOST, 3 * persisted.MOST)]
    for number in range(100):
        known._remember(str(number), str(number).ljust(10_000), 0)
    assert list(known._kept) == [str(number) for number in range(75, 100)]
    assert known._characters == persisted.MOST_CHARACTERS


async def test_switched_off_it_is_said_as_apollo_says_it(serve: Serve) -> None:
    async with serve(persisted_queries="off") as client:
        for request in (by_hash(NAMED, id=7), in_full(NAMED, id=7)):
            assert await refused(client, request, "PERSISTED_QUERY_NOT_SUPPORTED") == "PersistedQueryNotSupported"
        answer = (await post(client, {"query": NAMED, "variables": {"id": 7}})).json()
        assert answer == {"data": {"user": {"id": "7", "segments": []}}}


async def test_subscriptions_are_named_as_queries_are(serve: Serve) -> None:
    first = {"resync": True, "events": [], "user": {"segments": []}}
    async with serve() as client, socket(client) as subscriber:
        await subscriber.send("subscribe", id="1", payload=by_hash(USER, id=7))
        assert await subscriber.receive() == {"id": "1", "type": "error", "payload": NOT_FOUND["errors"]}
        for number, asked in enumerate((in_full(USER, id=7), by_hash(USER, id=7), {"documentId": hashed(USER)}), 2):
            await subscriber.send("subscribe", id=str(number), payload={**asked, "variables": {"id": 7}})
            assert await subscriber.next() == {"userChanged": first}
        async with asking(client, by_hash(USER, id=7)) as events:
            assert await events.next() == ("next", {"data": {"userChanged": first}})
        async with asking(client, by_hash(f"{USER} ", id=7)) as events:
            assert await events.next() == ("next", NOT_FOUND)
