"""Who may ask for what: every field of the first level, by every kind of caller, and nothing else for anybody."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from ipaddress import ip_network
from typing import Any
from urllib.parse import urlsplit

import pytest
from callers import a_token, bearing, caller, revoke
from conftest import Client, Serve
from graphql import GraphQLObjectType, get_introspection_query
from operations import CREATE, DELETE, count, new_key
from sqlalchemy.ext.asyncio import AsyncEngine

from db.tables import Scope
from schema.api import schema
from server.access import scope_of
from server.addresses import address
from server.tokens import DIGITS, Token, make

JSON = "application/json"
GRAPHQL_RESPONSE = "application/graphql-response+json"
NOBODY, READ, WRITE, ADMIN = "UNAUTHENTICATED", {"read", "write", "admin"}, {"write", "admin"}, {"admin"}
# Valid requests, and who may send them. Each caller's own slug is `$slug`.
QUERIES = {
    "user": ('user(id: "7") { id segments { slug } }', READ),
    "users": ('users(ids: ["7"]) { id }', READ),
    "segment": ("segment(slug: $slug) { id }", READ),
    "segments": ("segments { nodes { slug } }", READ),
    "task": ('task(id: "00000000-0000-0000-0000-000000000000") { id }', READ),
    "tasks": ("tasks { nodes { id } }", READ),
    "__typename": ("__typename", READ),
    "__schema": ("__schema { queryType { name } }", READ),
    "__type": ('__type(name: "User") { name }', READ),
}
MUTATIONS = {
    "createSegment": ("(input: {slug: $slug}, idempotencyKey: $key)", WRITE),
    "updateSegment": ('(slug: $slug, input: {description: "new"}, idempotencyKey: $key)', WRITE),
    "changeUserSegments": ('(input: {userId: "7", add: [$slug]}, idempotencyKey: $key)', WRITE),
    "changeMemberships": ('(input: {changes: [{userId: "8", add: [$slug]}]}, idempotencyKey: $key)', WRITE),
    "addUsersToSegment": ('(input: {slug: $slug, userIds: ["9"]}, idempotencyKey: $key)', WRITE),
    "removeUsersFromSegment": ('(input: {slug: $slug, userIds: ["9"]}, idempotencyKey: $key)', WRITE),
    "generateReport": ('(input: {from: "2020-01-01T00:00:00Z"}, idempotencyKey: $key)', WRITE),
    "importMembers": ("(input: {slug: $slug}, idempotencyKey: $key)", WRITE),
    "exportMembers": ("(input: {slug: $slug}, idempotencyKey: $key)", WRITE),
    "cancelTask": ('(id: "00000000-0000-0000-0000-000000000000", idempotencyKey: $key)', WRITE),
    "deleteSegment": ("(slug: $slug, idempotencyKey: $key)", ADMIN),
}
SUBSCRIPTIONS = {
    "userChanged": ('(id: "7") { resync }', READ),
    # Nobody has such a task; who may not ask is not even told that.
    "taskUpdated": ('(id: "00000000-0000-0000-0000-000000000000") { id }', READ),
}
ALL = QUERIES | MUTATIONS | SUBSCRIPTIONS
STATUSES = {"UNAUTHENTICATED": 401, "FORBIDDEN": 403}


def mutation(name: str) -> str:
    # Something that uses the slug, and does nothing.
    only = 'only: createSegment(input: {slug: "", description: $slug}, idempotencyKey: "") { replayed }'
    arguments, _ = MUTATIONS[name]
    return f"mutation ($slug: String!, $key: String!) {{ {name}{arguments} {{ userErrors {{ code }} }} {only} }}"


@pytest.fixture
async def client(serve: Serve) -> AsyncIterator[Client]:
    async with serve(authentication="required", login_failures=10_000) as client:
        yield client


async def code(client: Client, document: str, variables: dict[str, Any] | None = None) -> str:
    """The answer's code, or that there was no error."""
    response = await client.http.post("/graphql", json={"query": document, "variables": variables or {}})
    answer = response.json()
    if "errors" not in answer:
        assert response.status_code == 200
        return "allowed"
    (error,) = answer["errors"]
    found: str = error["extensions"]["code"]
    # A request that is not executed has no data, and a status that tells by itself.
    assert "data" not in answer
    assert response.status_code == STATUSES.get(found), answer
    return found


async def code_of_stream(client: Client, document: str) -> str:
    """The same of a subscription's first message."""
    accept = {"Accept": "text/event-stream"}
    async with client.http.stream("POST", "/graphql", json={"query": document}, headers=accept) as response:
        if response.status_code != 200:
            (error,) = json.loads(await response.aread())["errors"]
            assert response.status_code == STATUSES[error["extensions"]["code"]]
            return str(error["extensions"]["code"])
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                errors = json.loads(line.removeprefix("data: ")).get("errors", [])
                found = {error["extensions"]["code"] for error in errors}
                return "allowed" if found <= {"BAD_USER_INPUT"} else str(found)
    return "nothing"


async def test_every_field_answers_those_it_is_for_and_nobody_else(client: Client, engine: AsyncEngine) -> None:
    told = {name: await a_token(engine, name) for name in ("read", "write", "admin")}
    old, ended, garbage = await a_token(engine, seconds=-1), await a_token(engine), make()
    await revoke(engine, ended)
    shown: dict[str, Token | None] = {**told, "expired": old, "revoked": ended, "unknown": garbage, "none": None}
    documents = {
        name: f'query ($slug: String! = "X") {{ {field} only: segment(slug: $slug) {{ id }} }}'
        for name, (field, _) in QUERIES.items()
    } | {name: mutation(name) for name in MUTATIONS}
    allowed = {name: who for name, (_, who) in ALL.items()}
    expected = {
        name: {
            who: "UNAUTHENTICATED" if who not in told else "allowed" if who in allowed[name] else "FORBIDDEN"
            for who in shown
        }
        for name in ALL
    }
    found: dict[str, dict[str, str]] = {name: {} for name in ALL}
    for who, token in shown.items():
        async with caller(client, token) as asking:
            for name, document in documents.items():
                found[name][who] = await code(asking, document, {"slug": f"of-{who}", "key": new_key()})
            for name, (field, _) in SUBSCRIPTIONS.items():
                found[name][who] = await code_of_stream(asking, f"subscription {{ {name}{field} }}")
    assert found == expected


def test_the_table_above_is_about_every_field_and_says_what_the_schema_says() -> None:
    built = schema()._schema
    declared = {
        name: scope_of(root, name)
        for root in (built.query_type, built.mutation_type, built.subscription_type)
        if isinstance(root, GraphQLObjectType)
        for name in root.fields
    }
    least = {name: min(who, key=[*Scope].index) for name, (_, who) in ALL.items()}
    assert declared == {name: Scope(scope) for name, scope in least.items() if not name.startswith("__")}


async def test_a_field_that_says_nothing_of_its_callers_is_for_nobody(
    serve: Serve, client: Client, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = schema()._schema.query_type
    assert root is not None
    monkeypatch.setattr(root.fields["segments"].extensions["strawberry-definition"], "metadata", {})
    asked = {"query": "{ segments { nodes { id } } }"}
    refused = [{"message": "Field segments is nobody's to ask for.", "extensions": {"code": "FORBIDDEN"}}]
    answer = await client.http.post("/graphql", json=asked, headers=bearing(await a_token(engine, "admin")))
    assert (answer.status_code, answer.json()) == (403, {"errors": refused})
    async with serve() as unasked:
        assert (await unasked.http.post("/graphql", json=asked)).json() == {"errors": refused}


async def test_what_is_refused_leaves_no_trace(client: Client, engine: AsyncEngine) -> None:
    reader, writer = await a_token(engine, "read"), await a_token(engine, "write")
    for token, field in [(reader, name) for name in MUTATIONS] + [(writer, "deleteSegment")]:
        async with caller(client, token) as asking:
            assert await code(asking, mutation(field), {"slug": "A", "key": new_key()}) == "FORBIDDEN", field
    async with caller(client, writer) as asking:
        # The first would be allowed, and the second is not: neither happens.
        both = """mutation { createSegment(input: {slug: "A"}, idempotencyKey: "the-first-key") { replayed }
                             deleteSegment(slug: "A", idempotencyKey: "the-second-key") { replayed } }"""
        assert await code(asking, both) == "FORBIDDEN"
    assert [await count(engine, table) for table in ("operations", "tasks", "segments")] == [0, 0, 0]


CREATES = 'createSegment(input: {slug: "A"}, idempotencyKey: "some-key") { replayed }'
HIDDEN = [
    f"mutation {{ ...A }} fragment A on Mutation {{ {CREATES} }}",
    f"mutation {{ ...A }} fragment A on Mutation {{ ...B }} fragment B on Mutation {{ ... {{ {CREATES} }} }}",
    f"mutation {{ ... on Mutation {{ ... {{ __typename ... on Mutation {{ {CREATES} }} }} }} }}",
    f"mutation {{ user: {CREATES} }}",
    f"mutation {{ __typename {CREATES} }}",
    f"mutation {{ {CREATES.replace(') {', ') @skip(if: true) {')} }}",
    f"mutation ($no: Boolean! = false) {{ ... @include(if: $no) {{ {CREATES} }} }}",
    f"mutation {{ ...A ...A }} fragment A on Mutation {{ {CREATES} }}",
]


@pytest.mark.parametrize("media", [JSON, GRAPHQL_RESPONSE])
async def test_no_way_of_writing_it_hides_a_field(client: Client, engine: AsyncEngine, media: str) -> None:
    async with caller(client, await a_token(engine, "read")) as reader:
        for document in HIDDEN:
            answer = await reader.http.post("/graphql", json={"query": document}, headers={"Accept": media})
            assert answer.status_code == 403, document
            assert answer.json() == {
                "errors": [
                    {
                        "message": "Field createSegment needs the scope write.",
                        "extensions": {"code": "FORBIDDEN"},
                    }
                ]
            }
        # Of several operations the one that is run counts.
        several = {"query": f"mutation W {{ {CREATES} }} query R {{ __typename }}"}
        assert (await reader.http.post("/graphql", json=several | {"operationName": "R"})).status_code == 200
        assert (await reader.http.post("/graphql", json=several | {"operationName": "W"})).status_code == 403
        # What is refused as it stands is refused for that.
        wrong = await reader.http.post("/graphql", json={"query": "mutation { noSuchField }"})
        assert wrong.json()["errors"][0]["extensions"]["code"] == "GRAPHQL_VALIDATION_FAILED"
    assert await count(engine, "operations") == 0


async def test_with_get(client: Client, engine: AsyncEngine) -> None:
    asked = {"query": "{ __typename }"}
    assert (await client.http.get("/graphql", params=asked)).status_code == 401
    assert (await client.http.get("/graphql", params=asked, headers={"Accept": "text/html"})).status_code == 401
    assert (await client.http.get("/graphql", params={"query": ""})).status_code == 401
    async with caller(client, await a_token(engine, "read")) as reader:
        assert (await reader.http.get("/graphql", params=asked)).json() == {"data": {"__typename": "Query"}}
        assert (await reader.http.get("/graphql", params={"query": f"mutation {{ {CREATES} }}"})).status_code == 405
        assert (await reader.post(get_introspection_query()))["data"]["__schema"]
    # Pages and what probes ask are everybody's, and reveal nothing that is not in the repository.
    assert (await client.http.get("/graphql", headers={"Accept": "text/html"})).status_code == 200
    for path in ("/healthz", "/readyz"):
        assert (await client.http.get(path)).status_code == 200


async def test_no_spelling_of_the_path_goes_past_the_door(client: Client) -> None:
    url = urlsplit(str(client.http.base_url))
    body = b'{"query": "{ __typename }"}'
    for path in ("/graphql", "/graphql%0A", "/graphql/", "//graphql", "/%67raphql", "/graphql?a=b", "/x/../graphql"):
        # By hand: a client of HTTP would tidy the path.
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {JSON}\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
        answer = await reader.read()
        writer.close()
        assert answer.split(b" ")[1] in (b"307", b"401", b"404"), (path, answer)
        assert b"Query" not in answer


def wrong_authorizations(good: Token) -> dict[str, list[str]]:
    mistyped = [good.text[:-1] + digit for digit in DIGITS if digit != good.text[-1]]
    another = Token(good.id, make().secret)
    return {
        "two headers": [f"Bearer {good.text}", f"Bearer {good.text}"],
        "two, of which one is another": ["Basic YTpi", f"Bearer {good.text}"],
        "another scheme": [f"Basic {good.text}"],
        "no scheme": [good.text],
        "nothing": [""],
        "no token": ["Bearer"],
        "two tokens": [f"Bearer {good.text} {good.text}"],
        "a comma": [f"Bearer {good.text},{good.text}"],
        "quoted": [f'Bearer "{good.text}"'],
        "the id alone": [f"Bearer {good.id}"],
        "cut off": [f"Bearer {good.text[:-1]}"],
        "mistyped": [f"Bearer {mistyped[0]}"],
        "lower case": [f"Bearer {good.text.lower()}"],
        "another secret": [f"Bearer {another.text}"],
        "long": [f"Bearer segmentql_{'a' * 10_000}"],
        "something else": ["Bearer " + "a" * 2_000],
        "other digits": ["Bearer segmentql_" + "٣" * 62],
    }


async def test_headers_that_are_no_token_are_refused_in_the_same_words(client: Client, engine: AsyncEngine) -> None:
    good = await a_token(engine)
    found = {}
    for what, values in wrong_authorizations(good).items():
        headers = [(b"Authorization", value.encode()) for value in values]
        answer = await client.http.post("/graphql", json={"query": "{ __typename }"}, headers=headers)
        challenge = answer.headers["www-authenticate"]
        assert answer.status_code == 401, what
        assert challenge.startswith('Bearer realm="segmentql"')
        assert answer.headers["content-type"] == f"{JSON}; charset=utf-8"
        found[what] = answer.json()
    message = "A token is needed that is good: send it as `Authorization: Bearer <token>`."
    refused = {"errors": [{"message": message, "extensions": {"code": "UNAUTHENTICATED"}}]}
    assert found == dict.fromkeys(found, refused)


async def test_what_is_wrong_is_said_to_the_client_as_its_standard_asks(client: Client, engine: AsyncEngine) -> None:
    good = await a_token(engine)
    asked = {"query": "{ __typename }"}
    unsaid = await client.http.post("/graphql", json=asked)
    assert unsaid.headers["www-authenticate"] == 'Bearer realm="segmentql"'
    bad = await client.http.post("/graphql", json=asked, headers=bearing(make()))
    assert bad.headers["www-authenticate"] == 'Bearer realm="segmentql", error="invalid_token"'
    for scheme in ("bearer", "BEARER", "Bearer "):
        headers = {"Authorization": f"{scheme} {good.text}"}
        assert (await client.http.post("/graphql", json=asked, headers=headers)).status_code == 200


async def test_nobody_reads_a_body_of_somebody_unknown(client: Client) -> None:
    url = urlsplit(str(client.http.base_url))
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    head = f"POST /graphql HTTP/1.1\r\nHost: localhost\r\nContent-Type: {JSON}\r\nContent-Length: 1000\r\n\r\n"
    writer.write(head.encode())
    # Not a byte of it was sent.
    assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
    writer.close()


def test_a_callers_address_is_what_the_nearest_trusted_proxy_says_with_a_port_or_without() -> None:
    proxies = [ip_network("127.0.0.1"), ip_network("10.0.0.0/8")]
    for forwarded, expected in {
        "192.0.2.1": "192.0.2.1",
        "192.0.2.1:4711": "192.0.2.1",
        "2001:db8::1": "2001:db8::1",
        "[2001:db8::1]": "2001:db8::1",
        "[2001:db8::1]:4711": "2001:db8::1",
        "::ffff:192.0.2.1": "192.0.2.1",
        "[::ffff:192.0.2.1]:80": "192.0.2.1",
        "198.51.100.1, 192.0.2.1:80 , 10.0.0.1:443": "192.0.2.1",
        "192.0.2.1, nobody:80": "127.0.0.1",
        "192.0.2.1, 2001:db8::g": "127.0.0.1",
        ":80": "127.0.0.1",
        "": "127.0.0.1",
    }.items():
        headers = [(b"x-forwarded-for", forwarded.encode())]
        assert address({"client": ("127.0.0.1", 5), "headers": headers}, proxies) == expected, forwarded
        assert address({"client": ("127.0.0.2", 5), "headers": headers}, proxies) == "127.0.0.2"


async def test_where_nobody_is_asked_nothing_that_a_proxy_has_passed_on_is_taken(serve: Serve) -> None:
    asked = {"query": "{ __typename }"}
    for changes, status in (
        ({}, 403),
        ({"trusted_proxies": (ip_network("127.0.0.1"),)}, 200),
        ({"unauthenticated": "anywhere"}, 200),
        ({"authentication": "required"}, 401),
    ):
        async with serve(**changes) as client:
            for name in ("X-Forwarded-For", "x-forwarded-host", "Forwarded"):
                headers = {name: "for=192.0.2.1", "Host": "127.0.0.1"}
                answer = await client.http.post("/graphql", json=asked, headers=headers)
                assert answer.status_code == status, (changes, name)
                if status == 403:
                    assert "SEGMENTQL_AUTHENTICATION=required" in answer.json()["errors"][0]["message"]
                    assert (
                        await client.http.get("/graphql", headers=headers | {"Accept": "text/html"})
                    ).status_code == 403
                    assert (await client.http.get("/healthz", headers=headers)).status_code == 200


async def test_where_nobody_is_asked_a_token_does_no_harm(serve: Serve, engine: AsyncEngine) -> None:
    async with serve() as client:
        for authorization, number in zip(("Bearer x", "Basic YTpi", ""), itertools.count(), strict=False):
            variables = {"slug": f"A{number}", "key": new_key()}
            headers = {"Authorization": authorization}
            for document in (CREATE, DELETE):
                body = {"query": document, "variables": variables | {"key": new_key()}}
                answer = await client.http.post("/graphql", json=body, headers=headers)
                assert "errors" not in answer.json()
