"""A document is parsed and validated once, remembered within bounds, and answered the same the second time."""

from typing import Any

import pytest
from conftest import Client
from graphql import parse
from strawberry.schema import schema as strawberry_schema

from server import documents, validation
from server.documents import DocumentLimits, Documents

BY_ID = "query ($id: ID!) { user(id: $id) { id } }"
NO_LIMITS = DocumentLimits(tokens=1_000, depth=100, aliases=100, root_fields=100, directives=100)


class Work:
    """What Strawberry had parsed and validated, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.parsed: list[str] = []
        self.validated: list[str] = []
        strawberry: Any = strawberry_schema
        really_parse, really_validate = strawberry.parse, validation.mistakes

        def parse(text: str, **options: Any) -> Any:
            self.parsed.append(text)
            return really_parse(text, **options)

        def validate(schema: Any, document: Any, *, discreet: bool) -> Any:
            self.validated.append(document.loc.source.body)
            return really_validate(schema, document, discreet=discreet)

        monkeypatch.setattr(strawberry_schema, "parse", parse)
        monkeypatch.setattr(validation, "mistakes", validate)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    return Work(monkeypatch)


async def test_a_document_is_parsed_and_validated_once_whatever_its_variables(client: Client, work: Work) -> None:
    for number in range(3):
        assert await client.ask(BY_ID, id=number) == {"user": {"id": str(number)}}
    await client.http.get("/graphql", params={"query": BY_ID, "variables": '{"id": 4}'})
    assert (work.parsed, work.validated) == ([BY_ID], [BY_ID])
    await client.ask(f"{BY_ID} ", id=1)
    assert (work.parsed, work.validated) == ([BY_ID, f"{BY_ID} "], [BY_ID, f"{BY_ID} "])


async def test_a_document_that_cannot_be_run_is_not_remembered(client: Client, work: Work) -> None:
    for query in ("{", "{ nowhere }", "{ user(id: 1) { ...F } }", "fragment F on User { id }"):
        first, second = [await client.post(query) for _ in range(2)]
        assert first["errors"] == second["errors"]
        assert work.parsed[-2:] == [query, query]


async def test_a_document_beyond_the_limits_is_refused_before_it_is_validated(client: Client, work: Work) -> None:
    query = f"{{ {'__typename ' * 21} }}"
    first, second = [await client.post(query) for _ in range(2)]
    assert first == second
    assert (work.parsed, work.validated) == ([query, query], [])


async def test_errors_of_a_remembered_document_are_those_of_a_new_one(client: Client, work: Work) -> None:
    wrong: dict[str, dict[str, object]] = {
        BY_ID: {"id": 1.5},
        "query ($id: ID!) { a: user(id: $id) { id } }": {},
        "query ($first: Int!) {\n  segments(first: $first) { nodes { slug } }\n}": {"first": 0},
        "query ($slug: String!) { __typename segment(slug: $slug) { slug } }": {"slug": "\x07"},
    }
    for query, variables in wrong.items():
        first, second = [await client.post(query, variables) for _ in range(2)]
        assert first == second
        [error] = first["errors"]
        assert (error["extensions"]["code"], len(error["locations"])) == ("BAD_USER_INPUT", 1)
    assert work.validated == list(wrong)


async def test_each_operation_of_a_remembered_document_runs_by_its_name_and_none_without(
    client: Client, work: Work
) -> None:
    query = "query A { a: __typename } query B { b: __typename }"
    for _ in range(2):
        for name in ("A", "B"):
            response = await client.http.post("/graphql", json={"query": query, "operationName": name})
            assert response.json() == {"data": {name.lower(): "Query"}}
        for unclear in (None, "C"):
            response = await client.http.post("/graphql", json={"query": query, "operationName": unclear})
            assert [error["extensions"] for error in response.json()["errors"]] == [{"code": "BAD_USER_INPUT"}]
    assert (work.parsed, work.validated) == ([query], [query])


async def test_the_document_used_longest_ago_is_forgotten_first(
    client: Client, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = (f"{{ {alias}: __typename }}" for alias in ("one", "two", "six"))
    monkeypatch.setattr(documents, "CACHED_CHARACTERS", len(one) + len(two))
    for query in (one, two, one, three, one):
        await client.ask(query)
    assert work.validated == [one, two, three]
    await client.ask(two)
    assert work.validated == [one, two, three, two]


async def test_a_document_that_would_push_out_many_others_is_not_remembered(client: Client, work: Work) -> None:
    longest = "{ __typename }".ljust(documents.LONGEST_CACHED)
    longer = "{ __typename }".ljust(documents.LONGEST_CACHED + 1)
    for query in (longest, longer, longest, longer):
        await client.ask(query)
    assert work.validated == [longest, longer, longer]


def test_however_many_documents_come_no_more_than_so_many_characters_are_remembered() -> None:
    remembered = Documents(NO_LIMITS)
    document = parse("{ __typename }")
    texts = [f"{number}".ljust(100) for number in range(2_000)]
    for text in texts * 2:
        remembered.keep(text, document)
    kept = [text for text in texts if remembered.find(text) is not None]
    assert kept == texts[-documents.CACHED_CHARACTERS // 100 :]
