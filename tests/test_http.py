"""GraphQL over HTTP: whatever is sent gets an answer that a GraphQL client can read, and does no harm to others."""

import asyncio
import json
import logging
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from conftest import Client, Serve
from connecting import connected, exchange
from graphql import get_introspection_query
from operations import CREATE, SEGMENTS, change, count, create, new_key, slugs
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.types import Message, Receive, Scope, Send

from server import middleware

JSON = "application/json"
GRAPHQL_RESPONSE = "application/graphql-response+json"
BOTH = (JSON, GRAPHQL_RESPONSE)
IS_JSON = {"Content-Type": JSON}
TYPENAME = "{ __typename }"
ANSWERED = {"data": {"__typename": "Query"}}
BY_ID = "query ($id: ID!) { user(id: $id) { id } }"

MALFORMED_BODIES = {
    "a string": b'"x"',
    "a number": b"5",
    "null": b"null",
    "an array": b"[]",
    "a batch": b'[{"query": "{ __typename }"}]',
    "nothing": b"",
    "half an object": b'{"query": ',
    "two objects": b'{"query": "{ __typename }"}{}',
    "a form": b"query=%7B__typename%7D",
    "NaN": b'{"query": "{ __typename }", "variables": {"a": NaN}}',
    "Infinity": b'{"query": "{ __typename }", "variables": {"a": 1e999}}',
    "not UTF-8": b'{"query": "{ user(id: \\"\xff\\") { id } }"}',
    "UTF-16": '{"query": "{ __typename }"}'.encode("utf-16"),
    "half a surrogate pair": b'{"query": "{ __typename }", "variables": {"a": "\\ud83d"}}',
    "arrays in arrays": b"[" * 100_000 + b"]" * 100_000,
    "objects in objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "deep variables": b'{"query": "{ __typename }", "variables": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    "deep with a long number": b'{"a": 12345678901234567890, "b": ' + b"[" * 1_000 + b"]" * 1_000 + b"}",
    "a number of 5000 digits": b'{"query": "{ __typename }", "variables": {"a": ' + b"1" * 5_000 + b"}}",
    "no query": b'{"variables": {}}',
    "a query that is null": b'{"query": null}',
    "a query that is empty": b'{"query": ""}',
    "a query that is a number": b'{"query": 5}',
    "a query that is a list": b'{"query": ["{ __typename }"]}',
    "variables that are a string": b'{"query": "{ __typename }", "variables": "{}"}',
    "variables that are a list": b'{"query": "{ __typename }", "variables": [1]}',
    "extensions that are a list": b'{"query": "{ __typename }", "extensions": []}',
    "operationName that is a number": b'{"query": "query A { __typename }", "operationName": 5}',
    "operationName that is false": b'{"query": "query A { __typename }", "operationName": false}',
    "operationName that is a list": b'{"query": "query A { __typename }", "operationName": ["A"]}',
    "operationName that is an object": b'{"query": "query A { __typename }", "operationName": {}}',
}
MALFORMED_URLS: dict[str, dict[str, str]] = {
    "no query": {},
    "an empty query": {"query": ""},
    "variables that are not JSON": {"query": TYPENAME, "variables": "{"},
    "variables that are a number": {"query": TYPENAME, "variables": "5"},
    "variables that are a list": {"query": TYPENAME, "variables": "[1]"},
    "variables that are empty": {"query": TYPENAME, "variables": ""},
    "extensions that are not JSON": {"query": TYPENAME, "extensions": "x"},
}


async def test_every_malformed_body_is_refused(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    for accept in BOTH:
        headers = {**IS_JSON, "Accept": accept}
        outcomes = {
            name: refused(await client.http.post("/graphql", content=body, headers=headers), accept)
            for name, body in MALFORMED_BODIES.items()
        }
        assert outcomes == dict.fromkeys(MALFORMED_BODIES, (400, ["BAD_USER_INPUT"]))
    assert await client.post(TYPENAME) == ANSWERED
    assert warnings(caplog) == []


async def test_every_malformed_url_is_refused(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    for accept in BOTH:
        outcomes = {
            name: refused(await client.http.get("/graphql", params=params, headers={"Accept": accept}), accept)
            for name, params in MALFORMED_URLS.items()
        }
        assert outcomes == dict.fromkeys(MALFORMED_URLS, (400, ["BAD_USER_INPUT"]))
    assert warnings(caplog) == []


async def test_a_body_is_json_in_utf_8_or_refused(client: Client) -> None:
    statuses = {}
    for content_type in [
        "application/json",
        "Application/JSON ; Charset=UTF-8",
        'application/json; charset="utf-8"',
        "application/json; charset=latin-1",
        "application/json; charset=utf-16",
        "application/json, text/plain",
        "text/plain",
        "text/plain+application/json",
        "application/graphql",
        "application/graphql-response+json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
        None,
    ]:
        headers = {} if content_type is None else {"Content-Type": content_type}
        response = await client.http.post("/graphql", content=b'{"query": "{ __typename }"}', headers=headers)
        statuses[content_type] = response.status_code
        if response.status_code == 200:
            assert response.json() == ANSWERED
        else:
            assert refused(response, JSON) == (415, ["BAD_USER_INPUT"])
    assert [content_type for content_type, status in statuses.items() if status == 200] == [
        "application/json",
        "Application/JSON ; Charset=UTF-8",
        'application/json; charset="utf-8"',
    ]


async def test_a_method_other_than_get_and_post_is_not_allowed(client: Client) -> None:
    for method in ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"]:
        response = await client.http.request(method, "/graphql", json={"query": TYPENAME})
        assert refused(response, JSON) == (405, ["BAD_USER_INPUT"])
        assert response.headers["allow"] == "GET, POST"
    head = await client.http.head("/graphql", params={"query": TYPENAME})
    assert (head.status_code, head.headers["allow"], head.content) == (405, "GET, POST", b"")


async def test_a_url_can_ask_but_not_change(client: Client, engine: AsyncEngine) -> None:
    asked = {"query": BY_ID, "variables": '{"id": 12345678901234567890}', "extensions": "null"}
    response = await client.http.get("/graphql", params=asked)
    assert response.json() == {"data": {"user": {"id": "12345678901234567890"}}}
    # An empty name is how a URL says that there is none.
    nameless = await client.http.get("/graphql", params={"query": f"query Q {TYPENAME}", "operationName": ""})
    assert nameless.json() == ANSWERED

    changing = 'mutation M { createSegment(input: {slug: "A"}, idempotencyKey: "the-very-key") { replayed } }'
    for params in [{"query": changing}, {"query": f"query Q {TYPENAME} {changing}", "operationName": "M"}]:
        refusal = await client.http.get("/graphql", params=params)
        assert refused(refusal, JSON) == (405, ["BAD_USER_INPUT"])
        assert refusal.headers["allow"] == "POST"
    assert await count(engine, "segments") == 0


async def test_the_answer_has_the_media_type_that_is_wanted_most(client: Client) -> None:
    wanted: dict[str, str | None] = {
        "": JSON,
        "*/*": JSON,
        "application/*": JSON,
        "application/json": JSON,
        "APPLICATION/JSON; charset=utf-8": JSON,
        "application/json, multipart/mixed": JSON,
        "application/json, text/plain, */*": JSON,
        "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8": JSON,
        "application/graphql-response+json": GRAPHQL_RESPONSE,
        "application/graphql-response+json; charset=utf-8, application/json; charset=utf-8": GRAPHQL_RESPONSE,
        "application/graphql-response+json,application/json;q=0.9": GRAPHQL_RESPONSE,
        "application/json;q=0.9, application/graphql-response+json": GRAPHQL_RESPONSE,
        "application/graphql-response+json;q=0.9, application/json": JSON,
        "application/graphql-response+json, application/graphql+json, application/json, text/event-stream": (
            GRAPHQL_RESPONSE
        ),
        "application/graphql-response+json, */*": GRAPHQL_RESPONSE,
        "application/json;q=0, */*": GRAPHQL_RESPONSE,
        "application/graphql-response+json;q=0, */*;q=0.1": JSON,
        "application/json;q=x, */*;q=0.1": JSON,
        "text/html": None,
        "image/png, multipart/mixed": None,
        "application/json;q=0": None,
        "application/json;q=nan": None,
        "*/*;q=0": None,
        ",;,": None,
        "a/b," * 1_000 + JSON: None,  # nobody reads that far
    }
    outcomes: dict[str, str | None] = {}
    for accept in wanted:
        response = await client.http.post("/graphql", json={"query": TYPENAME}, headers={"Accept": accept})
        if response.status_code == 200:
            assert response.json() == ANSWERED
            outcomes[accept] = response.headers["content-type"].removesuffix("; charset=utf-8")
        else:
            assert refused(response, JSON) == (406, ["BAD_USER_INPUT"])
            outcomes[accept] = None
    assert outcomes == wanted

    lines = [("Accept", "text/html"), ("Accept", GRAPHQL_RESPONSE)]
    response = await client.http.post("/graphql", json={"query": TYPENAME}, headers=lines)
    assert response.headers["content-type"] == f"{GRAPHQL_RESPONSE}; charset=utf-8"


async def test_only_who_wants_html_and_asks_nothing_gets_a_page_and_it_is_our_own(client: Client) -> None:
    page = await client.http.get("/graphql", headers={"Accept": "text/html,*/*;q=0.8"})
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "https://" not in page.text
    anything = await client.http.get("/graphql", headers={"Accept": "*/*"})
    assert refused(anything, JSON) == (400, ["BAD_USER_INPUT"])
    asked = await client.http.get("/graphql", params={"query": TYPENAME}, headers={"Accept": "text/html,*/*;q=0.8"})
    assert asked.json() == ANSWERED


async def test_every_answer_may_be_kept_by_nobody_and_is_what_it_says(client: Client) -> None:
    answers = [
        await client.http.post("/graphql", json={"query": TYPENAME}),
        await client.http.post("/graphql", json={"query": "{"}),
        await client.http.post("/graphql", json={"query": "{"}, headers={"Accept": GRAPHQL_RESPONSE}),
        await client.http.post("/graphql", content=b"x" * 16_777_217, headers=IS_JSON),
        await client.http.put("/graphql"),
        await client.http.get("/nowhere"),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 400, 413, 405, 404]
    for answer in answers:
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"


async def test_mistakes_in_a_document_have_codes_and_the_status_of_their_media_type(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    mistakes: dict[str, tuple[str, dict[str, Any]]] = {
        "{": ("GRAPHQL_PARSE_FAILED", {}),
        "# nothing": ("GRAPHQL_PARSE_FAILED", {}),
        '{ user(id: "\\ud83d") { id } }': ("GRAPHQL_PARSE_FAILED", {}),
        "{ nowhere }": ("GRAPHQL_VALIDATION_FAILED", {}),
        "{ user { id } }": ("GRAPHQL_VALIDATION_FAILED", {}),
        "{ user(id: 1e2) { id } }": ("GRAPHQL_VALIDATION_FAILED", {}),
        "{ user(id: 1) { ...Unknown } }": ("GRAPHQL_VALIDATION_FAILED", {}),
        "query ($id: Nothing) { user(id: $id) { id } }": ("GRAPHQL_VALIDATION_FAILED", {}),
        BY_ID: ("BAD_USER_INPUT", {"id": [1, 2]}),
        "query($id:ID!) { user(id: $id) { id } }": ("BAD_USER_INPUT", {}),
        "query ($at: DateTime) { user(id: 1) { history(to: $at) { nodes { at } } } }": (
            "BAD_USER_INPUT",
            {"at": "2026-02-01"},
        ),
    }
    for accept, status in zip(BOTH, (200, 400), strict=True):
        outcomes = {}
        for query, (_, variables) in mistakes.items():
            body = {"query": query, "variables": variables}
            response = await client.http.post("/graphql", json=body, headers={"Accept": accept})
            outcomes[query] = refused(response, accept)
        assert outcomes == {query: (status, [code]) for query, (code, _) in mistakes.items()}
    assert warnings(caplog) == []


async def test_a_mistake_in_one_field_leaves_the_data_of_the_others(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    for accept in BOTH:
        body = {"query": '{ segment(slug: "\\u0007") { slug } __typename }'}
        response = await client.http.post("/graphql", json=body, headers={"Accept": accept})
        assert response.status_code == 200
        answer = response.json()
        assert answer["data"] == {"segment": None, "__typename": "Query"}
        [error] = answer["errors"]
        assert (error["path"], error["extensions"]) == (["segment"], {"code": "BAD_USER_INPUT", "argument": "slug"})
    assert warnings(caplog) == []


async def test_which_operation_is_run_is_said_or_nothing_is(client: Client, engine: AsyncEngine) -> None:
    creating = 'mutation A { createSegment(input: {slug: "A"}, idempotencyKey: "the-very-key") { replayed } }'
    several = f"{creating} query B {TYPENAME}"
    unclear = {
        "several and no name": {"query": several},
        "several and null": {"query": several, "operationName": None},
        "an unknown name": {"query": several, "operationName": "C"},
        "an empty name": {"query": several, "operationName": ""},
        "a name for the nameless": {"query": TYPENAME, "operationName": "A"},
        "no operation": {"query": "fragment F on User { id }"},
    }
    for accept, status in zip(BOTH, (200, 400), strict=True):
        outcomes = {
            name: refused(await client.http.post("/graphql", json=body, headers={"Accept": accept}), accept)
            for name, body in unclear.items()
        }
        assert outcomes == dict.fromkeys(unclear, (status, ["BAD_USER_INPUT"]))
    by_url = await client.http.get("/graphql", params={"query": several})
    assert refused(by_url, JSON) == (200, ["BAD_USER_INPUT"])
    assert await count(engine, "segments") == 0


async def test_a_number_as_user_id_is_the_same_user_as_its_digits(client: Client) -> None:
    ids = {
        "1000": "1000",
        '"1000"': "1000",
        "-5": "-5",
        "-0": "0",
        "-0.0": "0",
        "1e2": "100",
        "9007199254740993": "9007199254740993",
        "18446744073709551615": "18446744073709551615",
        "18446744073709551616": "18446744073709551616",
        "-9223372036854775809": "-9223372036854775809",
        "9" * 128: "9" * 128,
    }
    found = {}
    for sent in ids:
        body = json.dumps({"query": BY_ID}).removesuffix("}") + f', "variables": {{"id": {sent}}}}}'
        response = await client.http.post("/graphql", content=body, headers=IS_JSON)
        found[sent] = response.json()["data"]["user"]["id"]
    assert found == ids
    assert await client.ask(f"{{ user(id: {'9' * 128}) {{ id }} }}") == {"user": {"id": "9" * 128}}


async def test_a_number_that_is_no_whole_number_is_no_user_id(client: Client) -> None:
    for sent in ("1.5", "true", "null", "{}", "9" * 129):
        body = json.dumps({"query": BY_ID}).removesuffix("}") + f', "variables": {{"id": {sent}}}}}'
        answer = (await client.http.post("/graphql", content=body, headers=IS_JSON)).json()
        assert [error["extensions"]["code"] for error in answer["errors"]] == ["BAD_USER_INPUT"]


async def test_a_number_that_would_be_rounded_to_another_users_id_is_refused(client: Client) -> None:
    for sent in ("1e23", "9007199254740993.0", "-1E16", "1e999"):
        body = json.dumps({"query": BY_ID}).removesuffix("}") + f', "variables": {{"id": {sent}}}}}'
        response = await client.http.post("/graphql", content=body, headers=IS_JSON)
        assert refused(response, JSON) == (400, ["BAD_USER_INPUT"])


async def test_an_operation_may_go_up_to_each_limit_and_not_beyond(serve: Serve) -> None:
    nested = "{ ...A } fragment A on Query { user(id: 1) { ...B } } fragment B on User"
    spread = "fragment A on Query { a: __typename __typename }"
    cases = {
        "levels": ("{ user(id: 1) { memberships { addedAt } } }", "{ user(id: 1) { memberships { segment { id } } } }"),
        "levels in fragments": (
            f"{nested} {{ memberships {{ addedAt }} }}",
            f"{nested} {{ memberships {{ ... {{ segment {{ id }} }} }} }}",
        ),
        "aliases": ("{ a: user(id: 1) { b: id } }", "{ a: user(id: 1) { b: id c: id } }"),
        "aliases in fragments": (
            f"{{ ...A b: __typename }} {spread}",
            f"{{ ...A b: user(id: 1) {{ c: id }} }} {spread}",
        ),
        "root fields": ("{ __typename __typename user(id: 1) { id id id id } }", f"{{ {'__typename ' * 4} }}"),
        "root fields in fragments": (f"{{ ...A __typename }} {spread}", f"{{ ...A ...A }} {spread}"),
        "directives": (
            "{ __typename @skip(if: false) @include(if: true) }",
            "{ ... @skip(if: false) { __typename @skip(if: false) @include(if: true) } }",
        ),
    }
    limits = {"levels": 3, "aliases": 2, "root fields": 3, "directives": 2}
    async with serve(max_depth=3, max_aliases=2, max_root_fields=3, max_directives=2) as client:
        for name, (within, beyond) in cases.items():
            assert "errors" not in await client.post(within), name
            what = name.removesuffix(" in fragments")
            [error] = (await client.post(beyond))["errors"]
            assert error["message"] == f"The operation has more than {limits[what]} {what}.", name
            assert error["extensions"] == {"code": "LIMIT_EXCEEDED"}
        # Each operation has the limits to itself.
        several = " ".join(f"query {name} {{ __typename __typename }}" for name in "ABC")
        response = await client.http.post("/graphql", json={"query": several, "operationName": "B"})
        assert response.json() == ANSWERED


async def test_a_document_may_have_as_many_tokens_comments_characters_and_lines_as_allowed(serve: Serve) -> None:
    cases = [
        ("{user(id:1){id}}", "{user(id:1){id id}}"),
        ("#\n" * 11 + "{user(id:1){id}}", "#\n" * 12 + "{user(id:1){id}}"),
        (TYPENAME.ljust(550), TYPENAME.ljust(551)),
        (TYPENAME + "\n" * 11 + "\r" * 11, TYPENAME + "\n" * 12 + "\r" * 11),
    ]
    async with serve(max_tokens=11) as client:
        for within, beyond in cases:
            assert "errors" not in await client.post(within)
            for accept, status in zip(BOTH, (200, 400), strict=True):
                response = await client.http.post("/graphql", json={"query": beyond}, headers={"Accept": accept})
                assert refused(response, accept) == (status, ["LIMIT_EXCEEDED"])


async def test_tools_can_read_the_whole_schema(client: Client) -> None:
    answer = await client.ask(get_introspection_query(input_value_deprecation=True, specified_by_url=True))
    assert answer["__schema"]["queryType"] == {"name": "Query", "kind": "OBJECT"}


async def test_documents_made_to_be_expensive_are_refused_quickly(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    expensive = {
        "doubling fragments": doubling_fragments(150, "id"),
        "cyclic fragments": "{ user(id: 1) { ...A } } fragment A on User { ...B } fragment B on User { ...A }",
        "a cycle of 240 fragments": in_user("...F0", *(f"...F{(n + 1) % 240}" for n in range(240))),
        "a chain of 240 fragments": in_user("...F0", *(f"...F{n + 1}" for n in range(239)), "id"),
        "fragments nested to the last token": in_user(
            "...F0", *("...{" * 154 + f"...F{n + 1}" + "}" * 154 for n in range(4)), "id"
        ),
        "an unknown fragment": "{ user(id: 1) { ...Unknown } }",
        "1990 equal fields": f"{{user(id:1){{{'id ' * 1990}}}}}",
        "2000 equal fields": f"{{user(id:1){{{'id ' * 2000}}}}}",
        "990 unknown fields": in_user(" ".join(f"x{n}" for n in range(990))),
        "the longest document of long mistakes": in_user(" ".join("x" * 990 + str(n) for n in range(100))),
        "50 equal directives": f"{{ __typename {'@skip(if: false) ' * 50} }}",
        "a list 5000 deep": f"{{ users(ids: {'[' * 5_000}{']' * 5_000}) {{ id }} }}",
        "fields 300 deep": "{a" * 300 + "}" * 300,
        "a megabyte of comments": "#\n" * 349_000,
        "a megabyte in one comment": "#" * 1_048_000,
        "a megabyte of mistakes": f"{{{' '.join('x' * 10_000 + str(n) for n in range(100))}}}",
        "a megabyte of line ends": "\n" * 520_000 + "{",
    }
    codes = {}
    for name, query in expensive.items():
        started = time.perf_counter()
        response = await client.http.post("/graphql", json={"query": query}, headers={"Accept": GRAPHQL_RESPONSE})
        assert time.perf_counter() - started < 15, name  # a hang, not a figure
        status, found = refused(response, GRAPHQL_RESPONSE)
        assert status == 400
        codes[name] = set(found)
    limit, wrong = {"LIMIT_EXCEEDED"}, {"GRAPHQL_VALIDATION_FAILED"}
    assert codes == {
        **dict.fromkeys(expensive, limit),
        "cyclic fragments": wrong,
        "an unknown fragment": wrong,
        "990 unknown fields": limit | wrong,
        "the longest document of long mistakes": limit | wrong,
    }
    assert warnings(caplog) == []


async def test_fragments_nested_deeper_than_python_is_are_refused(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    query = in_user("...F0", *(f"...F{n + 1}" for n in range(1_999)), "id")
    async with serve(max_tokens=100_000) as client:
        response = await client.http.post("/graphql", json={"query": query})
    assert refused(response, JSON) == (200, ["LIMIT_EXCEEDED"])
    assert warnings(caplog) == []


async def test_an_operation_may_select_as_much_as_allowed_however_its_fragments_unfold(serve: Serve) -> None:
    async with serve(max_tokens=100) as client:
        # In 5 fragments 1 + (2 + 4 + 8 + 16) + 16, besides the user: of a selection for every second token.
        assert await client.ask(doubling_fragments(4, "id")) == {"user": {"id": "1"}}
        for beyond in (doubling_fragments(5, "id"), f"{{user(id:1){{{'id ' * 50}}}}}"):
            [error] = (await client.post(beyond))["errors"]
            assert error["message"] == "The operation has more than 50 selections."
            assert error["extensions"] == {"code": "LIMIT_EXCEEDED"}


async def test_a_body_may_have_as_many_bytes_as_allowed_and_no_more(serve: Serve) -> None:
    async with serve(max_body_bytes=1_000) as client:
        fits, too_large = (json.dumps({"query": TYPENAME}).ljust(size).encode() for size in (1_000, 1_001))
        for send in (whole, in_chunks):
            assert (await send(client, fits)).json() == ANSWERED
            refusal = await send(client, too_large)
            assert refused(refusal, JSON) == (413, ["LIMIT_EXCEEDED"])
            assert refusal.headers["connection"] == "close"
        assert (await whole(client, fits)).json() == ANSWERED


async def test_a_body_beyond_the_limit_takes_no_memory(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "LINGER_SECONDS", 60)
    async with serve(max_body_bytes=100_000) as client:
        reader, writer = await connected(client)
        writer.write(head("Transfer-Encoding: chunked"))
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(320):
            writer.write(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
            await writer.drain()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        writer.write(b"0\r\n\r\n")
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert json.loads(answer.rpartition(b"\r\n")[2])["errors"][0]["extensions"] == {"code": "LIMIT_EXCEEDED"}
    assert peak - before < 5_000_000  # of the 20 MB that were sent


async def test_who_never_stops_sending_is_answered_and_cut_off(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "LINGER_SECONDS", 0.1)
    async with serve(max_body_bytes=100_000) as client:
        reader, writer = await connected(client)
        answer = asyncio.create_task(reader.readuntil(b"]}"))
        writer.write(head("Transfer-Encoding: chunked"))
        with suppress(ConnectionError):
            async with asyncio.timeout(20):
                while True:
                    writer.write(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
                    await writer.drain()
        assert (await answer).startswith(b"HTTP/1.1 413 ")
        writer.close()


async def test_a_body_that_does_not_arrive_in_time_is_given_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "BODY_SECONDS", 0.1)
    async with serve() as client:
        answer = await exchange(client, head("Content-Length: 100") + b'{"query": "{ __typename }"}')
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.rpartition(b"\r\n")[2])["errors"][0]["extensions"] == {"code": "BAD_USER_INPUT"}


async def test_a_request_whose_client_left_while_sending_is_not_run() -> None:
    scope = {"type": "http", "method": "POST", "path": "/graphql", "headers": []}
    arriving: list[Message] = [
        {"type": "http.request", "body": b'{"query": "mutation { __typename }"}', "more_body": True},
        {"type": "http.disconnect"},
    ]
    happened: list[str] = []

    async def receive() -> Message:
        return arriving.pop(0)

    async def send(message: Message) -> None:
        happened.append(message["type"])

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        happened.append("run")

    await middleware.BodyLimit(application, 1_000)(scope, receive, send)
    assert (happened, arriving) == ([], [])


async def test_a_content_length_that_cannot_be_or_is_too_large_is_refused_before_any_body(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "LINGER_SECONDS", 0)
    impossible = dict.fromkeys(["abc", "", "-1", "+5", "1_0", "0x10", "²", "5, 5", "9" * 26], b"HTTP/1.1 400")
    too_large = dict.fromkeys(["16777217", "18446744073709551615"], b"HTTP/1.1 413")
    found = {}
    for length in impossible | too_large:
        answer = await exchange(client, head(f"Content-Length: {length}", "Expect: 100-continue"))
        found[length] = answer[:12]
    assert found == impossible | too_large
    assert await client.post(TYPENAME) == ANSWERED


async def test_what_takes_too_long_is_given_up_and_later_requests_work(
    serve: Serve, engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(execution_timeout=1) as client:
        await create(client, "A")
        await change(client, 7, add=["A"])
        body = {"query": SEGMENTS, "variables": {"id": 7, "freshness": "LATEST"}}
        async with engine.begin() as tx:
            await tx.execute(text("LOCK TABLE memberships IN ACCESS EXCLUSIVE MODE"))
            answers = await asyncio.gather(
                *(client.http.post("/graphql", json=body, headers={"Accept": accept}) for accept in BOTH)
            )
        outcomes = [refused(answer, accept) for answer, accept in zip(answers, BOTH, strict=True)]
        assert outcomes == [(200, ["TIMEOUT"]), (503, ["TIMEOUT"])]
        assert [(record.name, record.levelname) for record in warnings(caplog)] == [("server.errors", "WARNING")] * 2
        assert await slugs(client, 7, "LATEST") == ["A"]


async def test_a_failure_of_ours_is_masked_and_the_log_has_it_under_the_id_shown(
    client: Client, engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    body = {"query": SEGMENTS, "variables": {"id": 7, "freshness": "LATEST"}}
    async with engine.begin() as tx:
        await tx.execute(text("ALTER TABLE memberships RENAME TO memberships_away"))
    try:
        response = await client.http.post("/graphql", json=body)
    finally:
        async with engine.begin() as tx:
            await tx.execute(text("ALTER TABLE memberships_away RENAME TO memberships"))
    answer = response.json()
    [error] = answer["errors"]
    error_id = error["extensions"].pop("id")
    assert len(error_id) == 16
    assert response.status_code == 200
    assert answer == {
        "data": None,
        "errors": [
            {
                "message": f"Something went wrong on our side. The log has the details under {error_id}.",
                "locations": [{"line": 2, "column": 19}],
                "path": ["user", "segments"],
                "extensions": {"code": "INTERNAL_SERVER_ERROR"},
            }
        ],
    }
    [record] = warnings(caplog)
    assert record.levelname == "ERROR"
    assert error_id in record.getMessage()
    assert record.exc_info is not None
    assert 'relation "memberships" does not exist' in str(record.exc_info[1])
    assert await slugs(client, 7, "LATEST") == []


async def test_what_a_mutation_refuses_is_an_answer_and_nothing_for_the_log(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    refusal = (await client.ask(CREATE, slug="not a slug", key=new_key()))["createSegment"]
    assert [error["code"] for error in refusal["userErrors"]] == ["INVALID"]
    assert warnings(caplog) == []


def refused(response: httpx.Response, media: str) -> tuple[int, list[str]]:
    """Status and codes of an answer without data, which a GraphQL client can read."""
    assert response.headers["content-type"] == f"{media}; charset=utf-8"
    answer = response.json()
    assert answer.keys() == {"errors"}
    assert all(error["message"] for error in answer["errors"])
    return response.status_code, [error["extensions"]["code"] for error in answer["errors"]]


def warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """But for the line of the request itself."""
    return [each for each in caplog.records if each.levelno >= logging.WARNING and each.name != "server.requests"]


def in_user(selection: str, *fragments: str) -> str:
    """A query of a user, with the fragments F0, F1 and so on."""
    definitions = "".join(f" fragment F{n} on User{{{fragment}}}" for n, fragment in enumerate(fragments))
    return f"{{user(id:1){{{selection}}}}}{definitions}"


def doubling_fragments(count: int, leaf: str) -> str:
    return in_user("...F0", *(f"...F{n + 1} ...F{n + 1}" for n in range(count)), leaf)


async def whole(client: Client, body: bytes) -> httpx.Response:
    return await client.http.post("/graphql", content=body, headers=IS_JSON)


async def in_chunks(client: Client, body: bytes) -> httpx.Response:
    async def chunks() -> AsyncIterator[bytes]:
        for begin in range(0, len(body), 100):
            yield body[begin : begin + 100]

    return await client.http.post("/graphql", content=chunks(), headers=IS_JSON)


def head(*lines: str) -> bytes:
    """The beginning of a request, with those headers besides the usual ones."""
    usual = ["POST /graphql HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    return "\r\n".join([*usual, *lines, "", ""]).encode("latin-1")
