"""Segments: creating, changing, deleting, finding and listing them."""

import pytest
from conftest import Ask, Client
from operations import CREATE, DELETE, UPDATE, change, count, create, delete, new_key, slugs
from sqlalchemy.ext.asyncio import AsyncEngine

LIST = """query ($first: Int! = 50, $after: String, $filter: SegmentFilter) {
  segments(first: $first, after: $after, filter: $filter) {
    nodes { slug deletedAt } edges { cursor node { slug } }
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor } } }"""
FIND = "query ($slug: String!) { segment(slug: $slug) { id slug description createdAt updatedAt deletedAt } }"
SLUG_RULE = "A slug has 1 to 255 letters, digits, hyphens and underscores, and begins with a letter or digit."


async def test_a_created_segment_is_found_with_everything_it_was_given(ask: Ask) -> None:
    created = (await ask(CREATE, slug="AVITO_DISCOUNT_50", description="Half price.\nTill May.", key=new_key()))[
        "createSegment"
    ]
    assert (created["replayed"], created["userErrors"]) == (False, [])
    segment = created["segment"]
    assert segment == {
        "id": "1",
        "slug": "AVITO_DISCOUNT_50",
        "description": "Half price.\nTill May.",
        "createdAt": segment["updatedAt"],
        "updatedAt": segment["updatedAt"],
        "deletedAt": None,
    }
    assert (await ask(FIND, slug="AVITO_DISCOUNT_50"))["segment"] == segment


@pytest.mark.parametrize("slug", ["avito_discount_50", "AVITO", "", "no such slug", "ж" * 300])
async def test_a_segment_that_is_not_there_is_null(ask: Ask, client: Client, slug: str) -> None:
    await create(client, "AVITO_DISCOUNT_50")
    assert (await ask(FIND, slug=slug))["segment"] is None


async def test_a_slug_that_could_not_even_be_looked_for_is_refused(client: Client) -> None:
    answer = await client.post(FIND, {"slug": "A\x00B"})
    assert answer["errors"][0]["extensions"] == {"code": "BAD_USER_INPUT", "argument": "slug"}


@pytest.mark.parametrize("slug", ["a", "0", "A-b_9", "x" * 255])
async def test_slugs_within_the_rule_are_taken_as_they_are(ask: Ask, slug: str) -> None:
    assert (await ask(CREATE, slug=slug, key=new_key()))["createSegment"]["segment"]["slug"] == slug


@pytest.mark.parametrize(
    "slug",
    ["", "-a", "_a", "a b", "a.b", "ä", "x" * 256, "a\n", "a\x00", "\u202ea", "１"],
)
async def test_slugs_outside_the_rule_are_refused_and_nothing_is_created(
    ask: Ask, engine: AsyncEngine, slug: str
) -> None:
    refused = (await ask(CREATE, slug=slug, key=new_key()))["createSegment"]
    assert refused == {
        "segment": None,
        "replayed": False,
        "userErrors": [{"code": "INVALID", "path": ["input", "slug"], "message": SLUG_RULE}],
    }
    assert (await count(engine, "segments"), await count(engine, "operations")) == (0, 0)


@pytest.mark.parametrize("description", ["x" * 2001, "a\x00b", "bell \x07", "\x85"])
async def test_descriptions_outside_the_rule_are_refused(ask: Ask, engine: AsyncEngine, description: str) -> None:
    refused = (await ask(CREATE, slug="A", description=description, key=new_key()))["createSegment"]
    assert [(e["code"], e["path"]) for e in refused["userErrors"]] == [("INVALID", ["input", "description"])]
    assert await count(engine, "segments") == 0


async def test_a_description_of_any_script_is_kept_exactly(ask: Ask) -> None:
    description = "é e\u0301 𝔘 \u202e rtl \ufeff 👩‍👩‍👧 \t \r\n " + "x" * 1_950
    created = (await ask(CREATE, slug="A", description=description, key=new_key()))["createSegment"]
    assert created["segment"]["description"] == description


async def test_a_taken_slug_is_refused_and_its_key_is_unused(ask: Ask, engine: AsyncEngine) -> None:
    await ask(CREATE, slug="A", key=new_key())
    refused = (await ask(CREATE, slug="A", key="second-key"))["createSegment"]
    assert refused["segment"] is None
    assert [(e["code"], e["path"]) for e in refused["userErrors"]] == [("SEGMENT_EXISTS", ["input", "slug"])]
    assert (await count(engine, "segments"), await count(engine, "operations")) == (1, 1)
    fresh = (await ask(CREATE, slug="B", key="second-key"))["createSegment"]
    assert (fresh["segment"]["slug"], fresh["replayed"]) == ("B", False)


async def test_an_update_changes_what_is_given_and_keeps_what_is_not(ask: Ask) -> None:
    created = (await ask(CREATE, slug="A", description="old", key=new_key()))["createSegment"]["segment"]
    kept = (await ask(UPDATE, slug="A", input={}, key=new_key()))["updateSegment"]["segment"]
    assert kept == created
    changed = (await ask(UPDATE, slug="A", input={"description": "new"}, key=new_key()))["updateSegment"]["segment"]
    assert changed["description"] == "new"
    assert changed["updatedAt"] > created["updatedAt"]
    cleared = (await ask(UPDATE, slug="A", input={"description": None}, key=new_key()))["updateSegment"]["segment"]
    assert cleared["description"] is None
    assert (await ask(FIND, slug="A"))["segment"] == cleared


@pytest.mark.parametrize(("operation", "name"), [(UPDATE, "updateSegment"), (DELETE, "deleteSegment")])
async def test_an_unknown_segment_can_be_neither_changed_nor_deleted(
    ask: Ask, engine: AsyncEngine, operation: str, name: str
) -> None:
    variables: dict[str, object] = {"slug": "NONE", "key": new_key()}
    refused = (await ask(operation, **variables, **({"input": {}} if name == "updateSegment" else {})))[name]
    assert refused["segment"] is None
    assert [(e["code"], e["path"]) for e in refused["userErrors"]] == [("SEGMENT_NOT_FOUND", ["slug"])]
    assert await count(engine, "operations") == 0


async def test_a_deleted_segment_is_gone_and_its_slug_begins_anew_without_members(ask: Ask, client: Client) -> None:
    await create(client, "A")
    await change(client, 7, add=["A"])
    deleted = await delete(client, "A")
    assert deleted["deletedAt"] is not None
    assert (await ask(FIND, slug="A"))["segment"] is None
    assert await slugs(client, 7) == []
    again = (await ask(DELETE, slug="A", key=new_key()))["deleteSegment"]
    assert [e["code"] for e in again["userErrors"]] == ["SEGMENT_NOT_FOUND"]
    created = (await ask(CREATE, slug="A", key=new_key()))["createSegment"]["segment"]
    assert created["id"] != deleted["id"]
    assert await slugs(client, 7) == []
    assert await slugs(client, 7, "LATEST") == []


async def test_segments_are_listed_by_slug_page_by_page(ask: Ask, client: Client) -> None:
    await create(client, "b", "a", "B", "A-2", "A-1")
    first = (await ask(LIST, first=2))["segments"]
    assert [node["slug"] for node in first["nodes"]] == ["A-1", "A-2"]
    assert first["pageInfo"] == {
        "hasNextPage": True,
        "hasPreviousPage": False,
        "startCursor": first["edges"][0]["cursor"],
        "endCursor": first["edges"][1]["cursor"],
    }
    # What is created or deleted meanwhile moves nobody from one page to another.
    await create(client, "A-0")
    second = (await ask(LIST, first=2, after=first["pageInfo"]["endCursor"]))["segments"]
    assert [edge["node"]["slug"] for edge in second["edges"]] == ["B", "a"]
    assert second["pageInfo"]["hasPreviousPage"] is True
    last = (await ask(LIST, first=2, after=second["pageInfo"]["endCursor"]))["segments"]
    assert [node["slug"] for node in last["nodes"]] == ["b"]
    assert last["pageInfo"]["hasNextPage"] is False
    empty = (await ask(LIST, first=2, after=last["pageInfo"]["endCursor"]))["segments"]
    assert empty["nodes"] == []
    assert empty["pageInfo"] == {
        "hasNextPage": False,
        "hasPreviousPage": True,
        "startCursor": None,
        "endCursor": None,
    }


async def test_segments_are_found_by_prefix_and_by_having_been_deleted(ask: Ask, client: Client) -> None:
    await create(client, "AB_1", "AB-1", "ABC", "AX")
    await delete(client, "ABC")
    await create(client, "ABC")
    await delete(client, "ABC")

    async def found(**filter: object) -> list[str]:
        return [node["slug"] for node in (await ask(LIST, filter=filter))["segments"]["nodes"]]

    assert await found(slugPrefix="AB") == ["AB-1", "AB_1"]
    # Nothing in a prefix is a wildcard.
    assert await found(slugPrefix="AB_") == ["AB_1"]
    assert await found(slugPrefix="%") == []
    assert await found(slugPrefix="ab") == []
    assert await found(deleted=True) == ["ABC", "ABC"]
    assert await found(deleted=True, slugPrefix="AX") == []
    one = (await ask(LIST, first=1, filter={"deleted": True}))["segments"]
    two = (await ask(LIST, first=1, after=one["pageInfo"]["endCursor"], filter={"deleted": True}))["segments"]
    assert (one["pageInfo"]["hasNextPage"], two["pageInfo"]["hasNextPage"]) == (True, False)
    assert one["nodes"][0]["deletedAt"] < two["nodes"][0]["deletedAt"]


@pytest.mark.parametrize("first", [0, -1, 101, 2**31 - 1])
async def test_a_page_has_from_1_to_100(client: Client, first: int) -> None:
    answer = await client.post(LIST, {"first": first})
    assert answer["errors"][0]["extensions"] == {"code": "BAD_USER_INPUT", "argument": "first"}


@pytest.mark.parametrize(
    "cursor",
    [
        *("", "x", "é", "bm90IGpzb24=", "W10=", "e30=", "WyJzZWdtZW50Il0=", "WyJldmVudCIsIkEiLDFd", "A" * 10_000),
        # A slug that cannot be, an id out of range, and a number where the slug belongs.
        *("WyJzZWdtZW50IiwiLSIsMV0=", "WyJzZWdtZW50IiwiQSIsOTk5OTk5OTk5OTk5XQ==", "WyJzZWdtZW50IiwxLDFd"),
    ],
)
async def test_a_cursor_of_another_making_is_refused(client: Client, cursor: str) -> None:
    answer = await client.post(LIST, {"after": cursor})
    assert answer["data"] is None
    assert answer["errors"][0]["extensions"] == {"code": "BAD_USER_INPUT", "argument": "after"}
