"""Changes of many memberships in one mutation."""

import asyncio
import itertools
from typing import Any

import pytest
from conftest import Client, Serve
from operations import (
    ERRORS,
    change,
    count,
    create,
    differences,
    expire,
    history,
    memberships,
    new_key,
    slugs,
)
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

COUNTS = f"added updated removed unchanged {ERRORS}"
ADD = f"""mutation ($input: AddUsersToSegmentInput!, $key: String!) {{
  addUsersToSegment(input: $input, idempotencyKey: $key) {{ {COUNTS} }} }}"""
REMOVE = f"""mutation ($input: RemoveUsersFromSegmentInput!, $key: String!) {{
  removeUsersFromSegment(input: $input, idempotencyKey: $key) {{ {COUNTS} }} }}"""
CHANGES = f"""mutation ($input: ChangeMembershipsInput!, $key: String!) {{
  changeMemberships(input: $input, idempotencyKey: $key) {{ {COUNTS} }} }}"""
FUTURE = "2999-01-01T00:00:00.000000Z"


async def add(client: Client, slug: str, user_ids: list[Any], *, key: str = "", **input: Any) -> Any:
    variables = {"slug": slug, "userIds": user_ids, **input}
    return (await client.ask(ADD, input=variables, key=key or new_key()))["addUsersToSegment"]


async def remove(client: Client, slug: str, user_ids: list[Any], *, key: str = "") -> Any:
    variables = {"slug": slug, "userIds": user_ids}
    return (await client.ask(REMOVE, input=variables, key=key or new_key()))["removeUsersFromSegment"]


async def changes(client: Client, *changes: dict[str, Any], key: str = "") -> Any:
    answer = await client.ask(CHANGES, input={"changes": changes}, key=key or new_key())
    return answer["changeMemberships"]


def counts(payload: Any) -> tuple[int, int, int, int]:
    assert payload["userErrors"] == []
    return payload["added"], payload["updated"], payload["removed"], payload["unchanged"]


def refusals(payload: Any) -> list[tuple[str, list[str]]]:
    assert counts({**payload, "userErrors": []}) == (0, 0, 0, 0)
    return [(error["code"], error["path"]) for error in payload["userErrors"]]


async def test_counts_add_up_to_the_distinct_users(client: Client, engine: AsyncEngine) -> None:
    await create(client, "A")
    assert counts(await add(client, "A", ["u3", 7, "u1", "7", "u3"])) == (3, 0, 0, 0)
    assert counts(await add(client, "A", ["u1", "u2"], ttlDays=5)) == (1, 1, 0, 0)
    assert counts(await add(client, "A", ["u1", "u3", "u4"])) == (1, 1, 0, 1)
    assert counts(await remove(client, "A", ["u1", "u1", "nobody", "u4"])) == (0, 0, 2, 1)
    assert [await slugs(client, each) for each in ("u1", "u2", "u3", "u4", "7")] == [[], ["A"], ["A"], [], ["A"]]
    assert await differences(engine) == []


async def test_a_membership_that_has_expired_begins_anew(client: Client, engine: AsyncEngine) -> None:
    await create(client, "A")
    await add(client, "A", ["u1", "u2", "u3"], ttlDays=5)
    await expire(engine, "u1", "A")
    assert counts(await add(client, "A", ["u1", "u2"], expiresAt=FUTURE)) == (1, 1, 0, 0)
    assert [event["action"] for event in await history(client, "u1")] == ["ADDED", "EXPIRED", "ADDED"]
    await expire(engine, "u3", "A")
    assert counts(await remove(client, "A", ["u1", "u3"])) == (0, 0, 1, 1)
    assert [await slugs(client, user, "LATEST") for user in ("u1", "u2", "u3")] == [[], ["A"], []]
    assert await differences(engine) == []


async def test_everyone_is_read_anew_from_the_next_query_on(client: Client, serve: Serve) -> None:
    await create(client, "A")
    users = [f"user-{n}" for n in range(5_000)]
    sample = users[::500]
    async with serve() as other:
        for one in (client, other):
            assert [await slugs(one, user) for user in sample] == [[]] * len(sample)
        assert counts(await add(client, "A", users)) == (5_000, 0, 0, 0)
        for one in (client, other):
            assert [await slugs(one, user) for user in sample] == [["A"]] * len(sample)
        assert counts(await remove(other, "A", users)) == (0, 0, 5_000, 0)
        for one in (client, other):
            assert [await slugs(one, user) for user in sample] == [[]] * len(sample)


async def test_many_changes_of_many_users_happen_at_one_instant(client: Client, engine: AsyncEngine) -> None:
    await create(client, "A", "B", "C")
    await change(client, "u2", add=["B"])
    done = await changes(
        client,
        {"userId": "u1", "add": ["A", "B", "A"], "ttlDays": 3},
        {"userId": "u2", "add": ["A"], "remove": ["B", "C"]},
        {"userId": "u1", "add": ["C"]},
        {"userId": "u1", "add": ["C"]},
    )
    assert counts(done) == (4, 0, 1, 1)
    assert await slugs(client, "u1") == ["A", "B", "C"]
    assert await slugs(client, "u2") == ["A"]
    events = [event for user in ("u1", "u2") for event in await history(client, user)][:-1]
    assert len({event["at"] for event in events}) == 1
    assert [each["expiresAt"] is None for each in await memberships(client, "u1")] == [False, False, True]
    assert await differences(engine) == []


async def test_a_replay_answers_without_touching_memberships(client: Client, engine: AsyncEngine) -> None:
    await create(client, "A")
    first = await add(client, "A", ["u1", "u2"], key="one-and-only")
    await change(client, "u1", remove=["A"])
    again = await add(client, "A", ["u1", "u2"], key="one-and-only")
    assert again == {**first, "replayed": True}
    assert await slugs(client, "u1") == []
    other = await add(client, "A", ["u1"], key="one-and-only")
    assert refusals(other) == [("IDEMPOTENCY_KEY_REUSED", ["idempotencyKey"])]
    assert await differences(engine) == []


async def test_of_copies_at_once_one_takes_effect(client: Client, serve: Serve, engine: AsyncEngine) -> None:
    await create(client, "A")
    async with serve() as other:
        payloads = await asyncio.gather(
            *(add(one, "A", ["u1", "u2"], key="copied-key") for one in (client, other) for _ in range(5))
        )
    assert [payload["replayed"] for payload in payloads].count(False) == 1
    assert {counts(payload) for payload in payloads} == {(2, 0, 0, 0)}
    assert await count(engine, "membership_events") == 2


@pytest.mark.parametrize(
    ("input", "path"),
    [
        ({"userIds": []}, ["input", "userIds"]),
        ({"userIds": ["u1", "", "u2"]}, ["input", "userIds", "1"]),
        ({"userIds": ["u1", "x" * 129]}, ["input", "userIds", "1"]),
        ({"userIds": ["u\n1"]}, ["input", "userIds", "0"]),
        ({"userIds": ["u1"], "slug": "no slug"}, ["input", "slug"]),
        ({"userIds": ["u1"], "ttlDays": 0}, ["input", "ttlDays"]),
        ({"userIds": ["u1"], "expiresAt": "2020-01-01T00:00:00Z"}, ["input", "expiresAt"]),
        ({"userIds": ["u1"], "ttlDays": 1, "expiresAt": FUTURE}, ["input", "expiresAt"]),
    ],
)
async def test_what_is_wrong_is_named(client: Client, engine: AsyncEngine, input: Any, path: list[str]) -> None:
    await create(client, "A")
    answer = await client.ask(ADD, input={"slug": "A", **input}, key=new_key())
    assert refusals(answer["addUsersToSegment"]) == [("INVALID", path)]
    assert await count(engine, "membership_events") == 0


async def test_of_much_that_is_wrong_a_hundred_are_told_and_how_many_more(client: Client) -> None:
    await create(client, "A")
    payload = await add(client, "A", ["fine", *["\x00"] * 250])
    told = payload["userErrors"]
    assert [error["path"][-1] for error in told] == [*map(str, range(1, 101)), "userIds"]
    assert told[-1]["message"] == "150 more are wrong, too."
    payload = await changes(client, *({"userId": f"u{n}", "add": [f"NO{n}"]} for n in range(130)))
    assert {error["code"] for error in payload["userErrors"]} == {"SEGMENT_NOT_FOUND"}
    assert payload["userErrors"][99]["path"] == ["input", "changes", "99", "add", "0"]
    assert payload["userErrors"][100]["message"] == "30 more are wrong, too."


async def test_more_than_the_limit_is_refused_before_any_work(serve: Serve) -> None:
    async with serve(max_bulk_pairs=3, max_bulk_changes=2) as client:
        assert refusals(await add(client, "NONE", list("abcd"))) == [("TOO_MANY_ITEMS", ["input", "userIds"])]
        assert refusals(await remove(client, "NONE", list("abcd"))) == [("TOO_MANY_ITEMS", ["input", "userIds"])]
        one = {"userId": "u", "add": ["NONE"]}
        assert refusals(await changes(client, one, one, one)) == [("TOO_MANY_ITEMS", ["input", "changes"])]
        many = {"userId": "u", "add": ["N1", "N2"]}
        assert refusals(await changes(client, many, many)) == [("TOO_MANY_ITEMS", ["input", "changes"])]


async def test_contradictions_are_refused_where_they_are(client: Client, engine: AsyncEngine) -> None:
    await create(client, "A", "B")
    payload = await changes(
        client,
        {"userId": "u1", "add": ["A", "B"]},
        {"userId": "u1", "remove": ["B"]},
        {"userId": "u1", "add": ["A"], "ttlDays": 1},
        {"userId": "u2", "add": ["A"], "ttlDays": 1},
    )
    assert refusals(payload) == [
        ("CONFLICTING_CHANGE", ["input", "changes", "1", "remove", "0"]),
        ("CONFLICTING_CHANGE", ["input", "changes", "2", "add", "0"]),
    ]
    assert await count(engine, "membership_events") == 0
    assert await count(engine, "operations") == 2


async def test_an_unknown_segment_refuses_everything(client: Client, engine: AsyncEngine) -> None:
    assert refusals(await add(client, "A", ["u1"])) == [("SEGMENT_NOT_FOUND", ["input", "slug"])]
    assert refusals(await remove(client, "A", ["u1"])) == [("SEGMENT_NOT_FOUND", ["input", "slug"])]
    await create(client, "B")
    payload = await changes(client, {"userId": "u1", "add": ["B"]}, {"userId": "u2", "remove": ["A"], "add": ["A2"]})
    assert refusals(payload) == [
        ("SEGMENT_NOT_FOUND", ["input", "changes", "1", "add", "0"]),
        ("SEGMENT_NOT_FOUND", ["input", "changes", "1", "remove", "0"]),
    ]
    assert await slugs(client, "u1") == []


async def test_the_largest_list_fits_into_a_request(client: Client, engine: AsyncEngine) -> None:
    await create(client, "A")
    users = [f"{n:0128d}" for n in range(100_000)]
    assert counts(await add(client, "A", users)) == (100_000, 0, 0, 0)
    assert refusals(await add(client, "A", [*users, "one-more"])) == [("TOO_MANY_ITEMS", ["input", "userIds"])]
    assert await count(engine, "membership_events") == 100_000


async def test_bulk_and_single_changes_of_the_same_users_meet(
    client: Client, serve: Serve, engine: AsyncEngine, redis: Redis
) -> None:
    await create(client, "A", "B")
    users = [f"user-{n}" for n in range(2_000)]
    async with serve() as other:

        async def bulk(one: Client, order: list[str], change: Any) -> None:
            for _ in range(3):
                assert sum(counts(await change(one, "A", order))) == len(users)

        async def single(one: Client) -> None:
            for n, name in zip(range(30), itertools.cycle(("add", "remove")), strict=False):
                wanted: dict[str, Any] = {name: ["A", "B"]}
                payload = await change(one, users[n * 50], **wanted)
                assert payload["userErrors"] == []

        await asyncio.gather(bulk(client, users, add), bulk(other, users[::-1], remove), single(client), single(other))
        for user in users[::100]:
            assert await slugs(client, user) == await slugs(other, user) == await slugs(client, user, "LATEST")
    assert await differences(engine) == []


async def test_a_deletion_and_a_bulk_change_come_one_after_the_other(client: Client, engine: AsyncEngine) -> None:
    await create(client, "A")
    users = [f"user-{n}" for n in range(2_000)]
    deletion = 'mutation ($key: String!) { deleteSegment(slug: "A", idempotencyKey: $key) { userErrors { code } } }'
    added, deleted = await asyncio.gather(add(client, "A", users), client.ask(deletion, key=new_key()))
    assert deleted["deleteSegment"]["userErrors"] == []
    assert added["userErrors"] == [] or refusals(added) == [("SEGMENT_NOT_FOUND", ["input", "slug"])]
    assert await slugs(client, users[0]) == []
    assert await differences(engine) == []


async def test_a_segment_that_is_held_keeps_nobody_from_others(client: Client, engine: AsyncEngine) -> None:
    await create(client, "HELD", "FREE")
    queue = "SELECT hashtext(slug) & 63 FROM unnest(ARRAY['HELD', 'FREE']) AS slug"
    async with engine.begin() as tx:
        held, free = (await tx.execute(text(queue))).scalars()
        assert held != free
        await tx.execute(text(f"SELECT pg_advisory_xact_lock(hashtext('segments'), {held})"))
        waiting = [asyncio.create_task(change(client, f"u{n}", add=["HELD"])) for n in range(15)]
        waiting += [asyncio.create_task(add(client, "HELD", [f"v{n}"])) for n in range(3)]
        await asyncio.sleep(0)
        for n in range(5):
            assert (await change(client, f"w{n}", add=["FREE"]))["added"] == ["FREE"]
            assert counts(await add(client, "FREE", [f"x{n}"])) == (1, 0, 0, 0)
        assert not any(task.done() for task in waiting)
    payloads = await asyncio.gather(*waiting)
    assert [payload["userErrors"] for payload in payloads] == [[]] * 18
    assert await differences(engine) == []
