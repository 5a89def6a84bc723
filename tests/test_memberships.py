"""Putting users into segments, taking them out, and reading where they are."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from conftest import Ask, Client, Serve
from operations import (
    CHANGE,
    change,
    count,
    create,
    delete,
    differences,
    expire,
    history,
    memberships,
    new_key,
    slugs,
)
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine


def at(value: str) -> datetime:
    assert value.endswith("Z")
    return datetime.fromisoformat(value)


async def test_an_id_never_seen_is_a_user_without_segments(ask: Ask) -> None:
    answer = await ask('{ user(id: "nobody") { id segments { slug } memberships { addedAt } isIn(slug: "A") } }')
    assert answer == {"user": {"id": "nobody", "segments": [], "memberships": [], "isIn": False}}


async def test_a_number_and_its_digits_are_the_same_user(ask: Ask, client: Client) -> None:
    await create(client, "A")
    await change(client, 1000, add=["A"])
    answer = await ask('{ a: user(id: 1000) { id segments { slug } } b: user(id: "1000") { id segments { slug } } }')
    assert answer["a"] == answer["b"] == {"id": "1000", "segments": [{"slug": "A"}]}


async def test_a_user_is_added_and_removed(client: Client, engine: AsyncEngine) -> None:
    await create(client, "A", "B", "C")
    changed = await change(client, 7, add=["C", "A"])
    assert changed == {
        "user": {"id": "7", "segments": [{"slug": "A"}, {"slug": "C"}]},
        "added": ["C", "A"],
        "updated": [],
        "removed": [],
        "unchanged": [],
        "replayed": False,
        "userErrors": [],
    }
    changed = await change(client, 7, add=["A", "B"], remove=["C"])
    assert (changed["added"], changed["unchanged"], changed["removed"]) == (["B"], ["A"], ["C"])
    assert changed["user"]["segments"] == [{"slug": "A"}, {"slug": "B"}]
    assert [(event["action"], event["slug"]) for event in await history(client, 7)] == [
        ("ADDED", "B"),
        ("REMOVED", "C"),
        ("ADDED", "C"),
        ("ADDED", "A"),
    ]
    assert await differences(engine) == []


async def test_other_users_are_left_alone(client: Client) -> None:
    await create(client, "A")
    await change(client, "7", add=["A"])
    for other in ("70", "07", " 7", "7 ", "٧"):
        assert await slugs(client, other) == []
    await change(client, "70", remove=["A"])
    assert await slugs(client, "7") == ["A"]


async def test_removing_a_non_member_is_unchanged_and_no_error(client: Client, engine: AsyncEngine) -> None:
    await create(client, "A")
    changed = await change(client, 7, remove=["A"])
    assert (changed["removed"], changed["unchanged"], changed["userErrors"]) == ([], ["A"], [])
    assert await count(engine, "membership_events") == 0


async def test_ttl_days_count_from_the_database_clock_to_the_second(client: Client) -> None:
    await create(client, "A")
    await change(client, 7, add=["A"], ttlDays=5)
    membership = (await memberships(client, 7))[0]
    assert at(membership["expiresAt"]) - at(membership["addedAt"]) == timedelta(seconds=432_000)
    assert membership["source"] == "EXPLICIT"
    assert abs(at(membership["addedAt"]) - datetime.now(UTC)) < timedelta(seconds=10)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("2099-02-01T09:30:00Z", "2099-02-01T09:30:00.000000Z"),
        ("2099-02-01t12:30:00.25+03:00", "2099-02-01T09:30:00.250000Z"),
        ("2099-01-31T23:59:59.999999-00:00", "2099-01-31T23:59:59.999999Z"),
        ("9999-12-31T23:59:59.999998Z", "9999-12-31T23:59:59.999998Z"),
    ],
)
async def test_an_expiry_is_kept_to_the_microsecond(client: Client, given: str, kept: str) -> None:
    await create(client, "A")
    await change(client, 7, add=["A"], expiresAt=given)
    assert (await memberships(client, 7))[0]["expiresAt"] == kept
    assert (await memberships(client, 7))[0]["expiresAt"] == kept  # once more, from the cache
    assert (await memberships(client, 7, "LATEST"))[0]["expiresAt"] == kept
    assert (await history(client, 7))[0]["expiresAt"] == kept


@pytest.mark.parametrize(
    "given",
    [
        "2099-02-01",
        "2099-02-01T09:30:00",
        "2099-02-01 09:30:00Z",
        "2099-02-01T09:30Z",
        "2099-02-30T09:30:00Z",
        "2099-02-01T24:00:00Z",
        "2099-02-01T23:59:60Z",
        "2099-02-01T09:30:00.1234567Z",
        "2099-02-01T09:30:00+24:00",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59.999999Z",
        "9999-12-31T23:59:59-00:01",
        "٢٠٩٩-02-01T09:30:00Z",
        "2099-02-01T09:30:00Z\n",
        4_073_000_000,
        True,
        "",
    ],
)
async def test_an_instant_that_is_not_rfc_3339_with_an_offset_is_refused(client: Client, given: object) -> None:
    await create(client, "A")
    input = {"userId": 7, "add": ["A"], "expiresAt": given}
    answer = await client.post(CHANGE, {"input": input, "key": new_key()})
    assert [error["extensions"]["code"] for error in answer["errors"]] == ["BAD_USER_INPUT"]
    assert "expiresAt" in answer["errors"][0]["message"]
    assert await slugs(client, 7) == []


async def test_an_instant_in_the_document_is_as_strict(client: Client) -> None:
    answer = await client.post('{ user(id: 1) { history(from: "2026-02-01") { nodes { at } } } }')
    assert [error["extensions"]["code"] for error in answer["errors"]] == ["GRAPHQL_VALIDATION_FAILED"]
    assert "RFC 3339" in answer["errors"][0]["message"]


async def test_adding_a_member_again_moves_the_expiry_or_changes_nothing(client: Client, engine: AsyncEngine) -> None:
    await create(client, "A")
    await change(client, 7, add=["A"], expiresAt="2099-01-01T00:00:00Z")
    began = (await memberships(client, 7))[0]["addedAt"]
    same = await change(client, 7, add=["A"], expiresAt="2099-01-01T00:00:00Z")
    assert (same["unchanged"], same["updated"]) == (["A"], [])
    moved = await change(client, 7, add=["A"], expiresAt="2099-01-01T00:00:00.000001Z")
    assert (moved["updated"], moved["added"]) == (["A"], [])
    for_good = await change(client, 7, add=["A"])
    assert for_good["updated"] == ["A"]
    assert (await change(client, 7, add=["A"]))["unchanged"] == ["A"]
    now = (await memberships(client, 7))[0]
    assert (now["addedAt"], now["expiresAt"]) == (began, None)
    assert [(event["action"], event["expiresAt"]) for event in await history(client, 7)] == [
        ("EXPIRY_CHANGED", None),
        ("EXPIRY_CHANGED", "2099-01-01T00:00:00.000001Z"),
        ("ADDED", "2099-01-01T00:00:00.000000Z"),
    ]
    assert await differences(engine) == []


async def test_adding_after_an_expiry_that_no_job_has_noticed_is_a_new_membership(
    client: Client, engine: AsyncEngine
) -> None:
    await create(client, "A", "B")
    await change(client, 7, add=["A", "B"], ttlDays=1)
    await expire(engine, "7", "A", seconds_ago=60)
    before = await history(client, 7)
    assert await slugs(client, 7, "LATEST") == ["B"]
    changed = await change(client, 7, add=["A"], remove=["B"])
    assert (changed["added"], changed["removed"]) == (["A"], ["B"])
    assert at((await memberships(client, 7))[0]["addedAt"]) > at(before[0]["at"])
    events = [(event["action"], event["slug"], event["actor"]) for event in await history(client, 7)]
    assert events == [
        ("ADDED", "A", "anonymous"),
        ("REMOVED", "B", "anonymous"),
        ("ADDED", "B", "anonymous"),
        ("EXPIRED", "A", "purge"),
        ("ADDED", "A", "anonymous"),
    ]
    assert await differences(engine) == []


async def test_removing_after_an_expiry_is_unchanged(client: Client, engine: AsyncEngine) -> None:
    await create(client, "A")
    await change(client, 7, add=["A"], ttlDays=1)
    await expire(engine, "7", "A")
    assert (await change(client, 7, remove=["A"]))["unchanged"] == ["A"]
    assert [event["action"] for event in await history(client, 7)] == ["EXPIRED", "ADDED"]


async def test_the_lists_may_be_narrowed_and_unknown_slugs_are_passed_over(ask: Ask, client: Client) -> None:
    await create(client, "A", "B", "C")
    await change(client, 7, add=["A", "B"])
    answer = await ask(
        """{ user(id: 7) {
          some: segments(only: ["B", "C", "NONE"]) { slug } none: segments(only: []) { slug }
          with: memberships(only: ["A"]) { segment { slug } }
          a: isIn(slug: "A") c: isIn(slug: "C") unknown: isIn(slug: "NONE") } }"""
    )
    assert answer["user"] == {
        "some": [{"slug": "B"}],
        "none": [],
        "with": [{"segment": {"slug": "A"}}],
        "a": True,
        "c": False,
        "unknown": False,
    }


async def test_users_are_answered_in_the_order_asked_each_time_they_are(ask: Ask, client: Client) -> None:
    await create(client, "A")
    await change(client, "b", add=["A"])
    answer = await ask('{ users(ids: ["c", "b", "a", "b"]) { id segments { slug } } }')
    assert [(user["id"], len(user["segments"])) for user in answer["users"]] == [
        ("c", 0),
        ("b", 1),
        ("a", 0),
        ("b", 1),
    ]
    assert await ask("{ users(ids: []) { id } }") == {"users": []}


async def test_a_hundred_users_may_be_asked_for_and_no_more(client: Client) -> None:
    query = "query ($ids: [ID!]!) { users(ids: $ids) { segments { slug } } }"
    assert len((await client.ask(query, ids=list(range(100))))["users"]) == 100
    answer = await client.post(query, {"ids": list(range(101))})
    assert answer["errors"][0]["extensions"] == {"code": "BAD_USER_INPUT", "argument": "ids"}
    many = "query ($only: [String!]) { user(id: 1) { segments(only: $only) { slug } } }"
    answer = await client.post(many, {"only": ["A"] * 101})
    assert answer["errors"][0]["extensions"] == {"code": "BAD_USER_INPUT", "argument": "only"}


NORMALISATION_TWINS = ("caf\u00e9", "cafe\u0301")


@pytest.mark.parametrize(
    "user_id",
    [
        "x" * 128,
        "𝔘" * 128,
        "👩\u200d👩\u200d👧",
        "\u202eabc",
        "a b",
        " ",
        "'; --",
        '"',
        "\\",
        "%",
        "{}",
        "\xa0",
        "\ufeff",
        "\u2028",
        *list(NORMALISATION_TWINS),
    ],
)
async def test_any_id_without_control_characters_is_kept_exactly(client: Client, user_id: str) -> None:
    await create(client, "A")
    changed = await change(client, user_id, add=["A"])
    assert changed["user"] == {"id": user_id, "segments": [{"slug": "A"}]}
    assert [event["userId"] for event in await history(client, user_id)] == [user_id]
    for twin in NORMALISATION_TWINS:
        assert await slugs(client, twin) == (["A"] if twin == user_id else [])


@pytest.mark.parametrize("user_id", ["", "x" * 129, "a\x00", "\n", "a\x7f", "\x9f"])
async def test_an_id_that_cannot_be_is_refused_everywhere(client: Client, engine: AsyncEngine, user_id: str) -> None:
    await create(client, "A")
    refused = await change(client, user_id, add=["A"])
    assert [(e["code"], e["path"]) for e in refused["userErrors"]] == [("INVALID", ["input", "userId"])]
    assert await count(engine, "memberships") == 0
    one = await client.post("query ($id: ID!) { user(id: $id) { id } }", {"id": user_id})
    assert one["errors"][0]["extensions"] == {"code": "BAD_USER_INPUT", "argument": "id"}
    many = await client.post("query ($id: ID!) { users(ids: [1, $id]) { id } }", {"id": user_id})
    assert many["errors"][0]["extensions"] == {"code": "BAD_USER_INPUT", "argument": "ids"}


async def test_an_unknown_slug_refuses_everything_with_an_error_for_each(client: Client, engine: AsyncEngine) -> None:
    await create(client, "A", "B", "GONE")
    await change(client, 7, add=["B"])
    await delete(client, "GONE")
    refused = await change(client, 7, add=["A", "X", "X", "GONE"], remove=["B", "Y"], key="unused-key")
    assert refused["user"] is None
    assert [(e["code"], e["path"]) for e in refused["userErrors"]] == [
        ("SEGMENT_NOT_FOUND", ["input", "add", "1"]),
        ("SEGMENT_NOT_FOUND", ["input", "add", "3"]),
        ("SEGMENT_NOT_FOUND", ["input", "remove", "1"]),
    ]
    assert refused["userErrors"][0]["message"] == "There is no segment named X."
    assert [refused[name] for name in ("added", "updated", "removed", "unchanged")] == [[], [], [], []]
    assert await slugs(client, 7) == ["B"]
    assert (await change(client, 7, add=["A"], key="unused-key"))["replayed"] is False


INVALID_INPUTS: list[tuple[dict[str, Any], list[tuple[str, list[str]]]]] = [
    ({}, [("INVALID", ["input"])]),
    ({"add": [], "remove": []}, [("INVALID", ["input"])]),
    ({"add": ["A"], "ttlDays": 0}, [("INVALID", ["input", "ttlDays"])]),
    ({"add": ["A"], "ttlDays": -1}, [("INVALID", ["input", "ttlDays"])]),
    ({"add": ["A"], "ttlDays": 36_501}, [("INVALID", ["input", "ttlDays"])]),
    ({"add": ["A"], "expiresAt": "2020-01-01T00:00:00Z"}, [("INVALID", ["input", "expiresAt"])]),
    (
        {"add": ["A"], "ttlDays": 1, "expiresAt": "2099-01-01T00:00:00Z"},
        [("INVALID", ["input", "expiresAt"])],
    ),
    ({"add": ["A"], "remove": ["B", "A"]}, [("CONFLICTING_CHANGE", ["input", "remove", "1"])]),
    ({"add": ["A", "a b", ""]}, [("INVALID", ["input", "add", "1"]), ("INVALID", ["input", "add", "2"])]),
    ({"remove": ["A\x00"]}, [("INVALID", ["input", "remove", "0"])]),
    ({"add": ["A"] * 1_001}, [("TOO_MANY_ITEMS", ["input", "add"])]),
    ({"add": ["A"], "remove": ["B"] * 1_001}, [("TOO_MANY_ITEMS", ["input", "remove"])]),
]


@pytest.mark.parametrize(("input", "errors"), INVALID_INPUTS)
async def test_what_cannot_be_done_is_refused_by_its_path_and_changes_nothing(
    client: Client, engine: AsyncEngine, input: dict[str, Any], errors: list[tuple[str, list[str]]]
) -> None:
    await create(client, "A", "B")
    refused = await change(client, 7, **input)
    assert [(e["code"], e["path"]) for e in refused["userErrors"]] == errors
    assert refused["user"] is None
    assert await count(engine, "memberships") == 0
    assert await count(engine, "membership_events") == 0
    assert await count(engine, "operations") == 2


async def test_an_answer_with_too_many_items_is_refused_before_it_is_made(serve: Serve) -> None:
    async with serve(max_nodes=100) as client:
        await create(client, "A", "B")
        await change(client, 7, add=["A", "B"])
        query = "query ($ids: [ID!]!) { users(ids: $ids) { segments { slug } } }"
        assert len((await client.ask(query, ids=[7] * 33))["users"]) == 33
        answer = await client.post(query, {"ids": [7] * 34})
        assert {error["extensions"]["code"] for error in answer["errors"]} == {"LIMIT_EXCEEDED"}


async def test_a_slug_twice_in_one_list_counts_once(client: Client, engine: AsyncEngine) -> None:
    await create(client, "A", "B")
    changed = await change(client, 7, add=["B", "A", "B"])
    assert changed["added"] == ["B", "A"]
    assert await count(engine, "membership_events") == 2


async def test_a_thousand_segments_may_change_at_once(client: Client, engine: AsyncEngine) -> None:
    names = [f"S{number:04}" for number in range(1_000)]
    async with engine.begin() as tx:
        made = "INSERT INTO segments (slug, version) SELECT unnest(CAST(:names AS text[])), 1"
        await tx.execute(text(made), {"names": names})
        await tx.execute(text("UPDATE catalogue SET version = 1"))
    changed = await change(client, 7, add=names)
    assert changed["added"] == names
    assert await slugs(client, 7) == names
    changed = await change(client, 7, remove=list(reversed(names)))
    assert changed["removed"] == list(reversed(names))
    assert await slugs(client, 7) == []
    assert await differences(engine) == []
