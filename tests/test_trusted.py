"""With a manifest of documents, these are executed by each of their names, and nothing else is."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from comparing import counted
from conftest import Serve
from operations import new_key
from persisting import KEYS, NAMED, asking, by_hash, hashed, in_full, post, refused
from redis.asyncio import Redis
from subscribing import USER, socket

from server import documents
from server.app import create_app
from server.settings import Settings, StartError

BODY = f"{NAMED} # as the build has written it"
MUTATION = """mutation Create($slug: String!, $key: String!) {
  createSegment(input: {slug: $slug}, idempotencyKey: $key) { segment { slug } } }"""
SCHEMA = "{ __schema { queryType { name } } }"
RELAY = {"5d41402abc4b2a76b9719d911017c592": BODY, "create": MUTATION, "schema": SCHEMA}
APOLLO = {
    "format": "apollo-persisted-query-manifest",
    "version": 1,
    "operations": [
        {"id": id_, "name": "Named", "type": "query", "body": body}
        for id_, body in ((hashed(BODY), BODY), ("c", SCHEMA))
    ],
}
CODEGEN = {f"sha256:{hashed(BODY)}": BODY}


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[[Any], Path]:
    def written(manifest: Any) -> Path:
        path = tmp_path / "documents.json"
        path.write_text(manifest if isinstance(manifest, str) else json.dumps(manifest))
        return path

    return written


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (RELAY, {"id": "5d41402abc4b2a76b9719d911017c592"}),
        (RELAY, {"doc_id": "5d41402abc4b2a76b9719d911017c592"}),
        (RELAY, {"documentId": "5d41402abc4b2a76b9719d911017c592"}),
        (RELAY, {"query": BODY}),
        (RELAY, {"query": BODY, "id": "5d41402abc4b2a76b9719d911017c592"}),
        (APOLLO, by_hash(BODY)),
        (APOLLO, {"documentId": f"sha256:{hashed(BODY)}"}),
        (CODEGEN, by_hash(BODY)),
        (CODEGEN, {"documentId": hashed(BODY)}),
        (CODEGEN, {"documentId": f"sha256:{hashed(BODY)}"}),
    ],
)
async def test_a_trusted_document_is_found_by_each_of_its_names(
    serve: Serve, manifest: Callable[[Any], Path], monkeypatch: pytest.MonkeyPatch, given: Any, named: dict[str, Any]
) -> None:
    planned = counted(monkeypatch)
    async with serve(trusted_documents=manifest(given)) as client:
        response = await post(client, {**named, "variables": {"id": 7}})
        assert response.content == b'{"data":{"user":{"id":"7","segments":[]}}}'
        # It was got to know at the start, so that it is answered on the short way at once.
        assert planned == {"plan": 1}
        params = {name: value if isinstance(value, str) else json.dumps(value) for name, value in named.items()}
        got = await client.http.get("/graphql", params=params | {"variables": '{"id": 7}'})
        assert got.content == response.content


async def test_beside_trusted_documents_nothing_is_executed(
    serve: Serve, manifest: Callable[[Any], Path], redis: Redis
) -> None:
    untrusted = "Only documents of the manifest are executed here, and this text is not one of them."
    async with serve(trusted_documents=manifest(RELAY)) as client:
        for text in (NAMED, f"{BODY} ", "{ __schema { types { name } } }", "{"):
            assert await refused(client, {"query": text, "variables": {"id": 7}}, "DOCUMENT_NOT_TRUSTED") == untrusted
            assert await refused(client, in_full(text, id=7), "DOCUMENT_NOT_TRUSTED") == untrusted
        for named in ({"documentId": "other"}, {"id": "other"}, by_hash(NAMED), {"id": "other", "query": BODY}):
            assert await refused(client, named, "PERSISTED_QUERY_NOT_FOUND") == "PersistedQueryNotFound"
        assert await refused(client, {"id": "schema", "query": BODY}, "BAD_USER_INPUT") == (
            "id names another document than query."
        )
        assert await refused(client, {"id": "schema", "doc_id": "create"}, "BAD_USER_INPUT") == (
            "id and doc_id name different documents."
        )
        assert await refused(client, {"id": 5}, "BAD_USER_INPUT") == "id must be a string."
        assert await refused(client, {}, "BAD_USER_INPUT") == (
            "There must be a documentId, or a trusted document as query."
        )
        assert (await post(client, {"id": "schema"})).json() == {"data": {"__schema": {"queryType": {"name": "Query"}}}}
        created = await post(client, {"id": "create", "variables": {"slug": "A", "key": new_key()}})
        assert created.json() == {"data": {"createSegment": {"segment": {"slug": "A"}}}}
        page = await client.http.get("/graphql", headers={"Accept": "text/html"})
        assert page.status_code == 404
    assert await redis.exists(*KEYS) == 0


async def test_a_trusted_document_is_never_forgotten(
    serve: Serve, manifest: Callable[[Any], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "CACHED_CHARACTERS", 10)
    planned = counted(monkeypatch)
    many = {str(number): f"query ($id: ID!) {{ a{number}: user(id: $id) {{ id }} }}" for number in range(40)}
    long = "{ __typename }".ljust(documents.LONGEST_CACHED + 1)
    async with serve(trusted_documents=manifest({**many, "long": long})) as client:
        for number in (*range(40), 0):
            answer = (await post(client, {"id": str(number), "variables": {"id": 7}})).json()
            assert answer == {"data": {f"a{number}": {"id": "7"}}}
        assert (await post(client, {"id": "long"})).json() == {"data": {"__typename": "Query"}}
    assert planned == {"plan": 42}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("{", "it is not JSON in UTF-8"),
        ([], "it is not a JSON object"),
        ({"a": 1}, "'a' is not the id of a text"),
        ({"": BODY}, "'' is not the id of a text"),
        ({"a": BODY, "sha256:a": NAMED}, "sha256:a stands for two different texts"),
        ({"a": "{"}, "a: Syntax Error: Expected Name, found <EOF> (line 1, column 2)"),
        (
            {"a": BODY, "b": "{\n  segments(first: 1) { nowhere } }"},
            "b: Cannot query field 'nowhere' on type 'SegmentConnection' (line 2, column 24)",
        ),
        ({"a": f"{{ {'__typename ' * 21} }}"}, "a: The operation has more than 20 root fields (line 1, column 1)"),
        ({**APOLLO, "version": 2}, "version 1 and operations make a manifest of apollo-persisted-query-manifest"),
        ({**APOLLO, "operations": [{"id": 5}]}, "operations[0] must have an id and a body"),
        ({**APOLLO, "operations": [{"id": "a", "body": 5}]}, "'a' is not the id of a text"),
        ({"a": "{ __typename }" + " " * 2_000_000}, "its documents have more than 2000000 characters"),
        (" " * 16_777_217, "it is larger than 16777216 bytes"),
    ],
)
def test_a_manifest_with_a_mistake_does_not_start(
    settings: Settings, manifest: Callable[[Any], Path], given: Any, why: str
) -> None:
    path = manifest(given)
    with pytest.raises(StartError) as refused:
        create_app(dataclasses.replace(settings, trusted_documents=path))
    assert str(refused.value) == f"The trusted documents in {path} cannot be used: {why}."


def test_a_manifest_has_to_be_there_and_graphiql_not(
    settings: Settings, tmp_path: Path, manifest: Callable[[Any], Path]
) -> None:
    path = tmp_path / "nowhere.json"
    with pytest.raises(StartError, match=r"nowhere\.json cannot be used: No such file or directory"):
        create_app(dataclasses.replace(settings, trusted_documents=path))
    with pytest.raises(StartError, match="GraphiQL cannot ask anything"):
        create_app(dataclasses.replace(settings, trusted_documents=manifest(RELAY), graphiql="on"))


async def test_trusted_documents_are_enough_to_introspect_only_where_the_schema_is_shown(
    settings: Settings, manifest: Callable[[Any], Path]
) -> None:
    with pytest.raises(StartError, match="schema: GraphQL introspection has been disabled"):
        create_app(dataclasses.replace(settings, trusted_documents=manifest(RELAY), introspection="off"))


async def test_beside_trusted_documents_nothing_is_subscribed_to(serve: Serve, manifest: Callable[[Any], Path]) -> None:
    first = {"userChanged": {"resync": True, "events": [], "user": {"segments": []}}}
    async with serve(trusted_documents=manifest({"watch": USER})) as client, socket(client) as subscriber:
        for text in (f"{USER} ", NAMED):
            await subscriber.subscribe(text, id=7)
            [error] = (await subscriber.receive())["payload"]
            assert error["extensions"] == {"code": "DOCUMENT_NOT_TRUSTED"}
            async with asking(client, {"query": text, "variables": {"id": 7}}) as events:
                [error] = (await events.next())[1]["errors"]
                assert error["extensions"] == {"code": "DOCUMENT_NOT_TRUSTED"}
        await subscriber.send("subscribe", id="2", payload={"documentId": "watch", "variables": {"id": 7}})
        assert await subscriber.next() == first
        extensions = {"documentId": "watch"}
        payload = {"query": "", "extensions": extensions, "variables": {"id": 7}}
        await subscriber.send("subscribe", id="3", payload=payload)
        assert await subscriber.next() == first
        async with asking(client, {"id": "watch", "variables": {"id": 7}}) as events:
            assert await events.next() == ("next", {"data": first})
