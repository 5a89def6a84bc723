"""What strangers may send, through a browser or by themselves, and what of us they get to see."""

import asyncio
import codecs
import itertools
import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Client, Serve
from connecting import connected, exchange
from graphql import (
    GraphQLEnumType,
    GraphQLInputObjectType,
    GraphQLObjectType,
    GraphQLSchema,
    get_introspection_query,
    is_abstract_type,
)
from operations import CREATE, count, new_key
from prometheus_client import REGISTRY
from sqlalchemy.ext.asyncio import AsyncEngine

from schema.api import schema as api_schema
from server import fast_protocol, protocol

JSON = "application/json"
GRAPHQL_RESPONSE = "application/graphql-response+json"
TYPENAME = {"query": "{ __typename }"}
PAGE = {"Accept": "text/html,*/*;q=0.8"}
CREATING = 'mutation ($v: CreateSegmentInput!) { createSegment(input: $v, idempotencyKey: "a") { replayed } }'
# Guesses in one request.
AT_ONCE = 8
# Of these there are names, too; in a sentence they say nothing.
WORDS = {"error", "from", "invalid", "limit", "name", "to", "type", "value"}
NAME = re.compile(r"[_A-Za-z][_0-9A-Za-z]*")


def the_schema() -> GraphQLSchema:
    schema: GraphQLSchema = api_schema([])._schema  # Strawberry has no other way
    return schema


def in_user(selection: str, *fragments: str) -> str:
    definitions = "".join(f" fragment F{n} on User{{{fragment}}}" for n, fragment in enumerate(fragments))
    return f"{{user(id:1){{{selection}}}}}{definitions}"


def floods() -> dict[str, bytes]:
    """Bodies made to cost more than they are worth."""
    documents = {
        "aliases": in_user(" ".join(f"a{n}:id" for n in range(600))),
        "aliases of fields that cost": "{"
        + " ".join(f"a{n}:user(id:{n}){{segments{{slug}}}}" for n in range(150))
        + "}",
        "levels": "{a" * 190 + "}" * 190,
        "more levels than a parser has": "{a" * 5_000 + "}" * 5_000,
        "directives": "{__typename " + "@skip(if:false)" * 50 + "}",
        "unknown directives": "{__typename " + " ".join(f"@d{n}" for n in range(900)) + "}",
        "tokens": "{" + "a " * 100_000 + "}",
        "fragments that double": in_user("...F0", *(f"...F{n + 1} ...F{n + 1}" for n in range(150)), "id"),
        "fragments in a circle": in_user(
            " ".join(f"...F{n}" for n in range(140)), *(f"id ...F{(n + 1) % 140}" for n in range(140))
        ),
        "equal fields": in_user("id " * 1_980),
        "equal fields with others below": in_user("segments{slug id} " * 400),
        "fields that differ in an argument": in_user(" ".join(f'isIn(slug:"a{n}")' for n in range(320))),
        "such fields in fragments": in_user(
            " ".join(f"...F{n}" for n in range(140)), *(f'isIn(slug:"a{n}")' for n in range(140))
        ),
        "unknown fields": in_user(" ".join(f"segmentz{n}" for n in range(990))),
        "unknown arguments": "{user(" + " ".join(f"id{n}:1" for n in range(600)) + "){id}}",
        "an object of unknown fields": (
            "mutation{createSegment(input:{"
            + " ".join(f"slugg{n}:1" for n in range(600))
            + "} idempotencyKey:1){replayed}}"
        ),
        "fields of no object": in_user("id{id} " * 490),
        "operations of one name": " ".join("query Q{__typename}" for _ in range(390)),
        "unused fragments": "{__typename}" + "".join(f"fragment F{n} on User{{id}}" for n in range(240)),
        "undefined variables": in_user(" ".join(f"isIn(slug:$v{n})" for n in range(240))),
        "a list of lists": f"{{users(ids:{'[' * 5_000}{']' * 5_000}){{id}}}}",
        "introspections": "{" + " ".join(f"a{n}:__schema{{types{{fields{{name}}}}}}" for n in range(20)) + "}",
        "introspections by aliases": "{__schema{" + " ".join(f"a{n}:types{{name}}" for n in range(20)) + "}}",
        "comments": "#" + "x" * 1_048_000,
        "lines of comments": "#\n" * 349_000,
        "line ends": "\n" * 90_000 + in_user(" x" * 20),
        "long names": in_user(" ".join("x" * 990 + str(n) for n in range(100))),
    }
    bodies = {name: json.dumps({"query": document}).encode() for name, document in documents.items()}
    return bodies | {
        "a batch": b"[" + b",".join([json.dumps(TYPENAME).encode()] * 10_000) + b"]",
        "arrays 100 000 deep": b"[" * 100_000 + b"]" * 100_000,
        "variables 100 000 deep": b'{"query":"{__typename}","variables":{"a":'
        + b"[" * 100_000
        + b"]" * 100_000
        + b"}}",
        "two million arrays": b'{"query":"{__typename}","variables":{"a":[' + b"[]," * 2_000_000 + b"[]]}}",
        "two million texts": b'{"query":"{__typename}","variables":{"a":[' + b'"aa",' * 2_000_000 + b'"aa"]}}',
    }


async def test_every_flood_is_refused_with_a_code(client: Client) -> None:
    found = {}
    for name, body in floods().items():
        response = await client.http.post(
            "/graphql", content=body, headers={"Content-Type": JSON, "Accept": GRAPHQL_RESPONSE}
        )
        answer = response.json()
        assert response.status_code == (413 if name.startswith("two million") else 400), name
        assert len(response.content) < 20_000, name
        found[name] = {error["extensions"]["code"] for error in answer["errors"]}
    wrong, malformed, limit = "GRAPHQL_VALIDATION_FAILED", "BAD_USER_INPUT", "LIMIT_EXCEEDED"
    expected = {name: {limit} for name in found}
    for name in ("a batch", "arrays 100 000 deep", "variables 100 000 deep", "operations of one name"):
        expected[name] = {malformed}
    expected["fields that differ in an argument"] = {wrong}
    for name in (
        "unknown fields",
        "unknown arguments",
        "an object of unknown fields",
        "fields of no object",
        "long names",
        "undefined variables",
    ):
        expected[name] = {wrong, limit}
    assert found == expected
    assert await client.post("{ __typename }") == {"data": {"__typename": "Query"}}


async def test_a_value_in_a_message_is_cut_short(client: Client) -> None:
    wrong = " ".join(f"a{n}: 1" for n in range(300))
    answer = await client.post(f"mutation {{ createSegment(input: {{ {wrong} }}, idempotencyKey: 1) {{ replayed }} }}")
    messages = [error["message"] for error in answer["errors"]]
    assert len(messages) == 11
    assert max(map(len, messages)) < 400


async def test_fields_of_one_name_are_one_field_or_refused(client: Client) -> None:
    same = [
        '{ user(id: 1) { id id } user(id: 1) { id ...F } } fragment F on User { id x: isIn(slug: "a") }',
        '{ user(id: "1") { ... on User { history(first: 1) { nodes { slug } } history(first: 1) { nodes { at } } } } }',
        "query ($i: ID! = 1) { user(id: $i) { id } ... { user(id: $i) { segments { slug } } } }",
        "{ users(ids: [1, 2]) { id } users(ids: [1, 2]) { id } }",
    ]
    for query in same:
        assert "errors" not in await client.post(query), query
    conflicting = [
        "{ user(id: 1) { id } user(id: 2) { id } }",
        '{ user(id: 1) { id } user(id: "1") { id } }',
        "{ user(id: 1) { a: id a: segments { slug } } }",
        "{ user(id: 1) { segments { a: slug } } ...F } fragment F on Query { user(id: 1) { segments { a: id } } }",
        "query ($i: ID!, $j: ID!) { user(id: $i) { id } user(id: $j) { id } }",
        "{ users(ids: [1, 2]) { id } users(ids: [2, 1]) { id } }",
        "{ user(id: 1) { history { nodes { slug } } history(first: 1) { nodes { slug } } } }",
    ]
    for query in conflicting:
        [error] = (await client.post(query))["errors"]
        assert error["message"].startswith("Fields '"), query
        assert (error["extensions"]["code"], len(error["locations"])) == ("GRAPHQL_VALIDATION_FAILED", 2)


def test_no_field_has_a_type_of_which_there_are_several() -> None:
    """That is what the comparison of fields of one name relies on."""
    for type_ in the_schema().type_map.values():
        if isinstance(type_, GraphQLObjectType) and not type_.name.startswith("__"):
            for field in type_.fields.values():
                named = field.type
                while hasattr(named, "of_type"):
                    named = named.of_type
                assert not is_abstract_type(named)


def typos(name: str) -> Iterator[str]:
    yield f"{name}s"
    yield f"{name[:-2]}{name[-1]}{name[-2:-1]}"


def real_names(schema: GraphQLSchema) -> set[str]:
    names = set()
    for type_ in schema.type_map.values():
        if type_.name.startswith("__") or type_.name in ("ID", "String", "Int", "Float", "Boolean"):
            continue
        names.add(type_.name)
        if isinstance(type_, GraphQLEnumType):
            names |= set(type_.values)
        elif isinstance(type_, GraphQLInputObjectType):
            names |= set(type_.fields)
        elif isinstance(type_, GraphQLObjectType):
            names |= set(type_.fields)
            names |= {argument for field in type_.fields.values() for argument in field.args}
    return names


def guesses(names: set[str]) -> Iterator[dict[str, Any]]:
    """Each name, and wrong ones near it, wherever a name can be; and what is right but for what it lacks."""
    # Those of one kind together, so that no request has a name besides its typo.
    kinds = itertools.zip_longest(*([name, *typos(name)] for name in sorted(names)))
    for kind in kinds:
        words = [word for word in kind if word is not None and word not in names - {kind[0]}]
        for begin in range(0, len(words), AT_ONCE):
            some = words[begin : begin + AT_ONCE]
            fields, each = " ".join(some), list(enumerate(some))
            objects = " ".join(f"{word}: 1" for word in some)
            yield {"query": f"{{ {fields} }}"}
            yield {"query": f"{{ user(id: 1) {{ {fields} }} segments {{ nodes {{ {fields} }} }} }}"}
            yield {"query": f"{{ user(id: 1, {objects}) {{ id }} }}"}
            yield {"query": f"mutation {{ {' '.join(f'{word}(input: {{}}) {{ {word} }}' for word in some)} }}"}
            yield {"query": f"query ({' '.join(f'$v{n}: {word}' for n, word in each)}) {{ __typename }}"}
            yield {"query": f"{{ user(id: 1) {{ {' '.join(f'... on {word} {{ id }}' for word in some)} }} }}"}
            fresh = " ".join(f"a{n}: segments(freshness: {word}) {{ slug }}" for n, word in each)
            yield {"query": f"{{ user(id: 1) {{ {fresh} }} }}"}
            yield {"query": f"{{ user(id: 1) {' '.join(f'@{word}' for word in some)} {{ {fields} }} }}"}
            yield {"query": f"{{ user(id: 1) {{ {' '.join(f'...{word}' for word in some)} }} }}"}
            yield {"query": f"mutation {{ createSegment(input: {{ {objects} }}, idempotencyKey: 1) {{ replayed }} }}"}
            yield {"query": CREATING, "variables": {"v": dict.fromkeys(some, 1)}}
    yield {"query": CREATING, "variables": {"v": 5}}
    yield {"query": CREATING, "variables": {"v": {}}}
    yield {"query": CREATING.replace("$v: CreateSegmentInput!", "$v: Int")}
    yield {"query": "mutation { createSegment { replayed } }"}
    yield {"query": "mutation { createSegment(input: {}) { replayed } }"}
    yield {"query": "query ($f: Freshness) { user(id: 1) { segments(freshness: $f) { id } } }", "variables": {"f": "X"}}
    yield {"query": "query ($f: Int) { user(id: $f) { id { id } segments } }", "variables": {"f": "x"}}
    yield {"query": "{ user(id: 1.5) }"}
    yield {"query": "{ user { id } }"}
    yield {"query": "subscription { user }"}


async def test_who_may_not_see_the_schema_is_told_no_name_that_they_have_not_said(serve: Serve) -> None:
    names = real_names(the_schema())
    told: dict[str, set[str]] = {}
    messages = 0
    async with serve(introspection="off", rate_limit=0) as client:
        for body in guesses(names):
            said = set(NAME.findall(json.dumps(body)))
            for error in (await client.http.post("/graphql", json=body)).json().get("errors", ()):
                messages += 1
                words = set(NAME.findall(error["message"]))
                if leaked := (words & names) - said - WORDS:
                    told[error["message"]] = leaked
                assert "mean" not in words
    assert told == {}
    assert messages > 1_000


# Each lacks, or has too much of, something whose name would be an answer.
LACKING = [
    "{{ user {{ id }} {more} }}",
    "{{ user(id: 1) {{ segments(freshness: NOPE) {{ slug }} }} {more} }}",
    "{{ user(id: 1) {{ isIn segments history {{ nope }} }} {more} }}",
    "{{ user(id: 1.5) {{ id {{ id }} }} segments(first: 1.5) {{ nodes }} {more} }}",
    "{{ user(id: 1) {{ history(from: 5, first: 9999999999) {{ nodes {{ slug }} }} }} {more} }}",
    "{{ user(id: 1) {{ ... on Query {{ user {{ id }} }} }} {more} }}",
    "query ($v: CreateSegmentInput) {{ user(id: $v) {{ id }} {more} }}",
    "query ($v: Int!) {{ user(id: $v) {{ id }} {more} }}",
    "mutation {{ createSegment(input: {{}}, idempotencyKey: 1.5) {{ replayed }} {more} }}",
    "mutation {{ changeUserSegments(input: {{userId: 1.5}}) {{ replayed }} {more} }}",
    "mutation {{ createSegment {{ replayed }} {more} }}",
    "mutation ($v: CreateSegmentInput!) {{ createSegment(input: $v, idempotencyKey: 1) {{ replayed }} {more} }}",
]


def with_dictionary(document: str, words: list[str]) -> Iterator[dict[str, Any]]:
    """The request with these words at every place that says nothing to the schema."""
    all_of_them = " ".join(words)
    plain = document.format(more="__typename")
    yield {"query": f"{plain} # {all_of_them}"}
    yield {"query": document.format(more=f'a: __typename @include(if: "{all_of_them}")')}
    yield {"query": document.format(more=" ".join(f"{word}: __typename" for word in words[:20]))}
    yield {"query": plain, "variables": {"w": words, **dict.fromkeys(words, all_of_them)}}
    spread = " ".join(f"...{word}" for word in words[:40])
    root = "Mutation" if document.startswith("mutation") else "Query"
    fragments = " ".join(f"fragment {word} on {root} {{ __typename }}" for word in words[:40])
    yield {"query": f"{document.format(more=spread)} {fragments}"}
    kind, _, rest = plain.partition("{")
    word, _, variables = kind.strip().partition(" ")
    for name in words[::60]:
        yield {"query": f"{word or 'query'} {name} {variables} {{{rest}", "operationName": name}


async def test_words_that_a_request_has_elsewhere_change_no_answer(serve: Serve) -> None:
    right = sorted(real_names(the_schema()) | {"ID", "Int", "String", "Boolean"}, key=lambda name: (len(name), name))
    wrong = [codecs.encode(name, "rot13") for name in right]
    assert not set(right) & set(wrong)
    async with serve(introspection="off", rate_limit=0) as client:
        for document in LACKING:
            for one, other in zip(with_dictionary(document, right), with_dictionary(document, wrong), strict=True):
                answers = [(await client.http.post("/graphql", json=body)).json() for body in (one, other)]
                assert "errors" in answers[0], one
                assert answers[0] == answers[1], one


async def test_introspection_is_where_only_this_machine_asks_or_where_it_is_switched_on(serve: Serve) -> None:
    near = "{ usr(id: 1) { id } }"
    for changes, shown in (
        ({}, True),
        ({"introspection": "off"}, False),
        ({"public_url": "https://segments.example.com"}, False),
        ({"host": "0.0.0.0", "unauthenticated": "anywhere"}, False),
        ({"host": "0.0.0.0", "unauthenticated": "anywhere", "introspection": "on"}, True),
    ):
        async with serve(**changes) as client:
            whole = await client.post(get_introspection_query())
            [error] = (await client.post(near))["errors"]
            assert ("Did you mean 'user'" in error["message"]) == shown, changes
            assert ("data" in whole) == shown, changes
            if not shown:
                assert error["message"] == "Cannot query field 'usr'."
                for refused in (whole, await client.post('{ __type(name: "User") { name } }')):
                    assert "introspection has been disabled" in refused["errors"][0]["message"]


async def test_graphiql_is_where_only_this_machine_asks_or_where_it_is_switched_on(serve: Serve) -> None:
    for changes, status in (
        ({}, 200),
        ({"graphiql": "off"}, 404),
        ({"host": "0.0.0.0", "unauthenticated": "anywhere"}, 404),
        ({"host": "0.0.0.0", "authentication": "required", "graphiql": "on"}, 200),
    ):
        async with serve(**changes) as client:
            for path in ("/graphql", "/graphiql/segmentql.js"):
                assert (await client.http.get(path, headers=PAGE)).status_code == status, (changes, path)


async def test_only_by_names_of_this_machine_it_is_asked_without_authentication(serve: Serve) -> None:
    async with serve() as client:
        port = client.http.base_url.port
        for host, status in {
            "localhost": 200,
            f"LocalHost:{port}": 200,
            "localhost.": 200,
            "app.localhost:1": 200,
            "127.0.0.1": 200,
            f"[::1]:{port}": 200,
            "segments.example.com": 400,
            "localhost.example.com": 400,
            "xlocalhost": 400,
            "127.0.0.1.example.com": 400,
            "localhost@example.com": 400,
            "example.com@localhost": 400,
            "localhost/": 400,
            "localhost:x": 400,
            "[::1": 400,
            "0.0.0.0": 400,
            "": 400,
        }.items():
            for path, expected in (("/graphql", status), ("/healthz", 200)):
                request = client.http.build_request("POST" if path == "/graphql" else "GET", path, json=TYPENAME)
                request.headers["Host"] = host
                assert (await client.http.send(request)).status_code == expected, (host, path)
        nameless = b"POST /graphql HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 0\r\n"
        for more in (b"", b"Host: localhost\r\nHost: example.com\r\n"):
            assert (await exchange(client, nameless + more + b"Connection: close\r\n\r\n")).startswith(b"HTTP/1.1 400 ")


async def test_names_can_be_set_and_with_authentication_any_is_taken(serve: Serve) -> None:
    host = {"Host": "segments.example.com"}
    for changes, status in (
        ({"allowed_hosts": ("segments.example.com",)}, 200),
        ({"allowed_hosts": ("*.example.com",)}, 200),
        ({"allowed_hosts": ("example.com",)}, 400),
        ({"public_url": "https://segments.example.com"}, 200),
        ({"host": "0.0.0.0", "unauthenticated": "anywhere"}, 200),
        ({"authentication": "required"}, 401),
        ({"authentication": "required", "allowed_hosts": ("other.example.com",)}, 400),
    ):
        async with serve(**changes) as client:
            assert (await client.http.post("/graphql", json=TYPENAME, headers=host)).status_code == status, changes


async def test_no_page_of_another_origin_can_ask_or_change_anything(serve: Serve, engine: AsyncEngine) -> None:
    async with serve() as client:
        own = str(client.http.base_url).rstrip("/")
        body = json.dumps({"query": CREATE, "variables": {"slug": "A", "key": new_key()}})
        for origin in ("https://evil.example.com", "null", "http://localhost:1", ""):
            # What a browser sends without asking before, and what it asks before.
            for content_type in (JSON, "text/plain", "application/x-www-form-urlencoded"):
                headers = {"Origin": origin, "Content-Type": content_type}
                assert (await client.http.post("/graphql", content=body, headers=headers)).status_code == 403, origin
            preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            answer = await client.http.options("/graphql", headers=preflight)
            assert answer.status_code == 403
            assert "access-control-allow-origin" not in answer.headers
        # Of a browser that tells no origin.
        for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
            answer = await client.http.post("/graphql", content=body, headers={"Content-Type": content_type})
            assert answer.status_code == 415
        assert await count(engine, "segments") == 0
        answer = await client.http.post("/graphql", content=body, headers={"Origin": own, "Content-Type": JSON})
        assert answer.json()["data"]["createSegment"]["userErrors"] == []


async def test_a_page_of_an_origin_that_is_set_may_ask(serve: Serve) -> None:
    app, other = "https://app.example.com", "https://other.example.com"
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    async with serve(cors_origins=(app,), authentication="required") as client:
        preflight = await client.http.options("/graphql", headers={"Origin": app, **asked})
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, app)
        assert "access-control-allow-credentials" not in preflight.headers
        answer = await client.http.post("/graphql", json=TYPENAME, headers={"Origin": app})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, app)
        assert "Retry-After" in answer.headers["access-control-expose-headers"]
        refused = await client.http.options("/graphql", headers={"Origin": other, **asked})
        assert refused.status_code == 400
        stranger = await client.http.post("/graphql", json=TYPENAME, headers={"Origin": other})
        for each in (refused, stranger):
            assert "access-control-allow-origin" not in each.headers
    async with serve(cors_origins=(app,)) as client:
        assert (await client.http.post("/graphql", json=TYPENAME, headers={"Origin": app})).status_code == 200
        assert (await client.http.post("/graphql", json=TYPENAME, headers={"Origin": other})).status_code == 403


async def test_every_answer_tells_browsers_what_not_to_do_with_it(serve: Serve) -> None:
    async with serve(public_url="https://127.0.0.1") as client:
        answers = [
            await client.http.post("/graphql", json=TYPENAME),
            await client.http.post("/graphql", content=b"x"),
            await client.http.get("/healthz"),
            await client.http.get("/nowhere"),
            await client.http.post("/graphql", json=TYPENAME, headers={"Host": "example.com"}),
        ]
        for answer in answers:
            assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["x-frame-options"] == "DENY"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert answer.headers["cross-origin-resource-policy"] == "same-origin"
            assert answer.headers["strict-transport-security"] == "max-age=31536000"
            assert "server" not in answer.headers or answer.headers["server"] == "uvicorn"
    async with serve() as client:
        assert "strict-transport-security" not in (await client.http.get("/healthz")).headers


async def test_headers_may_be_as_large_and_as_many_as_allowed(serve: Serve) -> None:
    async with serve(max_header_bytes=2_000) as client:
        for headers, status in (
            ({"X-Large": "x" * 1_500}, 200),
            ({"X-Large": "x" * 2_000}, 431),
            ({f"X-{n}": "x" for n in range(80)}, 200),
            ({f"X-{n}": "" for n in range(101)}, 431),
        ):
            answer = await client.http.post("/graphql", json=TYPENAME, headers=headers)
            assert answer.status_code == status
            if status != 200:
                assert answer.json()["errors"][0]["extensions"] == {"code": "LIMIT_EXCEEDED"}
        long_url = await client.http.get("/graphql", params={"query": "{ __typename }".ljust(2_000)})
        assert long_url.status_code == 431
        # One header that never ends, and many requests in one go whose sum is larger.
        reader, writer = await connected(client)
        writer.write(b"GET /healthz HTTP/1.1\r\nX-Endless: ")
        for _ in range(30):
            writer.write(b"x" * 1_000)
            await asyncio.sleep(0)
        assert (await reader.read()).startswith(b"HTTP/1.1 431 ")
        writer.close()
        one = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 500 + b"\r\n"
        answers = await exchange(client, (one + b"\r\n") * 9 + one + b"Connection: close\r\n\r\n")
        assert answers.count(b"HTTP/1.1 200 ") == 10


async def test_what_is_no_http_is_refused_in_json(client: Client) -> None:
    answer = await exchange(client, b"nonsense\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.rpartition(b"\r\n")[2])["errors"][0]["extensions"] == {"code": "BAD_USER_INPUT"}


async def test_headers_that_do_not_arrive_in_time_are_given_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEADERS_SECONDS", 0.2)
    async with serve() as client:
        for beginning in (b"P", b"\r\n", b"POST /graphql HTTP/1.1\r\nHost: loc"):
            assert (await exchange(client, beginning)).startswith(b"HTTP/1.1 408 "), beginning
        # Again and again a byte is no progress.
        reader, writer = await connected(client)
        trickle = asyncio.create_task(trickling(writer))
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        trickle.cancel()
        writer.close()
        # A request that was finished, and another one that was not begun.
        _, writer = await connected(client)
        await asyncio.sleep(0.4)
        assert (await client.http.get("/healthz")).status_code == 200
        writer.close()


async def trickling(writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET / HTTP/1.1\r\nX: ")
    while True:
        writer.write(b"x")
        await asyncio.sleep(0.02)


async def test_who_does_not_read_an_answer_is_cut_off(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "READ_SECONDS", 0.2)
    page = b"GET /graphiql/graphiql@3.8.3/graphiql.min.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with serve() as client:
        url = client.http.base_url
        with socket.create_connection((url.host, url.port)) as reader:
            # Nothing is read of 35 MB, which fit into no buffer.
            reader.sendall(page * 10)
            await open_requests(1)
            await open_requests(0)
            read = 0
            reader.settimeout(20)
            while piece := reader.recv(1_000_000):
                read += len(piece)
        assert read < 20_000_000


async def test_connections_that_ask_nothing_make_room_for_those_that_do(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_protocol, "most_connections", lambda: 5)
    async with serve() as client:
        silent = [await connected(client) for _ in range(5)]
        assert (await client.http.get("/healthz")).status_code == 200
        assert await silent[0][0].read() == b""
        for _, writer in silent:
            writer.close()


async def test_when_all_connections_are_at_work_another_is_told_so(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_protocol, "most_connections", lambda: 3)
    async with serve() as client:
        busy = [await connected(client) for _ in range(3)]
        for _, writer in busy:
            writer.write(b"POST /graphql HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n")
            await writer.drain()
        await open_requests(3)
        answer = await exchange(client, b"")
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert json.loads(answer.rpartition(b"\r\n")[2])["errors"][0]["extensions"] == {"code": "OVERLOADED"}
        for _, writer in busy:
            writer.close()


async def open_requests(number: int) -> None:
    """Wait until so many are being answered."""
    async with asyncio.timeout(20):
        while REGISTRY.get_sample_value("segmentql_http_requests_open") != number:
            await asyncio.sleep(0.01)
