"""Idempotency: whatever is retried, raced or cut off, a mutation happens once and answers the same."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from conftest import Client, Serve
from operations import (
    CHANGE,
    CREATE,
    DELETE,
    HISTORY,
    change,
    count,
    create,
    database_clock,
    differences,
    history,
    new_key,
    slugs,
)
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from strawberry import UNSET
from wire import Wire

from db import operations
from resolvers import idempotency


def without_replayed(payload: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in payload.items() if name != "replayed"}


async def test_a_retry_answers_what_the_first_call_answered_and_does_nothing(
    client: Client, engine: AsyncEngine
) -> None:
    await create(client, "A", "B")
    first = await change(client, 7, add=["A", "B"], key="the-very-key")
    again = await change(client, 7, add=["A", "B"], key="the-very-key")
    assert (first["replayed"], again["replayed"]) == (False, True)
    assert without_replayed(again) == without_replayed(first)
    assert again["added"] == ["A", "B"]
    assert len(await history(client, 7)) == 2
    assert await count(engine, "operations") == 3


async def test_what_a_replay_shows_beside_the_outcome_is_of_now(client: Client) -> None:
    created = (await client.ask(CREATE, slug="A", key="create-key"))["createSegment"]
    added = await change(client, 7, add=["A"], key="the-very-key")
    await client.ask(DELETE, slug="A", key=new_key())
    replayed = (await client.ask(CREATE, slug="A", key="create-key"))["createSegment"]
    assert replayed["segment"]["id"] == created["segment"]["id"]
    assert replayed["segment"]["deletedAt"] is not None
    again = await change(client, 7, add=["A"], key="the-very-key")
    assert (again["added"], again["user"]["segments"]) == (added["added"], [])


async def test_a_retry_may_ask_for_other_fields(client: Client) -> None:
    await client.ask(CREATE, slug="A", key="create-key")
    answer = await client.ask(
        'mutation { createSegment(idempotencyKey: "create-key", input: {slug: "A", description: null}) { replayed } }'
    )
    assert answer["createSegment"]["replayed"] is True


async def test_a_retry_is_good_even_when_the_first_call_would_now_be_refused(
    client: Client, engine: AsyncEngine
) -> None:
    await create(client, "A")
    soon = datetime.now(UTC) + timedelta(seconds=2)
    input: dict[str, Any] = {"add": ["A"], "expiresAt": soon.isoformat(), "key": "the-very-key"}
    first = await change(client, 7, **input)
    assert (first["added"], first["userErrors"]) == (["A"], [])
    await client.ask(DELETE, slug="A", key=new_key())
    while await database_clock(engine) <= soon:
        await asyncio.sleep(0.05)
    again = await change(client, 7, **input)
    assert (again["replayed"], again["added"], again["userErrors"]) == (True, ["A"], [])


@pytest.mark.parametrize(
    "other",
    [
        {"add": ["B"]},
        {"add": ["A"], "ttlDays": 1},
        {"add": ["A"], "expiresAt": "2099-01-01T00:00:00Z"},
        {"remove": ["A"]},
        {"add": ["A"], "remove": ["B"]},
        {"add": ["A", "B"]},
    ],
)
async def test_a_key_is_not_good_for_other_arguments(
    client: Client, engine: AsyncEngine, other: dict[str, Any]
) -> None:
    await create(client, "A", "B")
    await change(client, 7, add=["A"], key="the-very-key")
    refused = await change(client, 7, key="the-very-key", **other)
    assert [(e["code"], e["path"]) for e in refused["userErrors"]] == [("IDEMPOTENCY_KEY_REUSED", ["idempotencyKey"])]
    assert await slugs(client, 7) == ["A"]
    assert await count(engine, "operations") == 3


async def test_a_key_is_not_good_for_another_mutation_or_another_user(client: Client) -> None:
    await client.ask(CREATE, slug="A", key="the-very-key")
    refused = await change(client, 7, add=["A"], key="the-very-key")
    assert [e["code"] for e in refused["userErrors"]] == ["IDEMPOTENCY_KEY_REUSED"]
    await change(client, 7, add=["A"], key="second-key")
    refused = await change(client, 8, add=["A"], key="second-key")
    assert [e["code"] for e in refused["userErrors"]] == ["IDEMPOTENCY_KEY_REUSED"]


async def test_the_same_arguments_written_otherwise_are_the_same(client: Client) -> None:
    await create(client, "A")
    await change(client, "7", add=["A"], expiresAt="2099-01-01T03:00:00+03:00", key="the-very-key")
    again = await change(
        client, 7, add=["A"], remove=[], ttlDays=None, expiresAt="2099-01-01T00:00:00.000Z", key="the-very-key"
    )
    assert (again["replayed"], again["userErrors"]) == (True, [])


def test_a_request_fits_its_key_when_a_new_version_knows_more_arguments() -> None:
    @dataclass
    class Old:
        slug: str
        names: list[str] = field(default_factory=list)
        cleared: str | None = UNSET

    @dataclass
    class New(Old):
        percent: float | None = None
        more: list[str] = field(default_factory=list)

    def fingerprint(input: object) -> bytes:
        return idempotency.request("client", "the-very-key", "kind", input=input).fingerprint

    assert fingerprint(Old("A", ["B"])) == fingerprint(New("A", ["B"]))
    assert fingerprint(Old("A", ["B"], None)) == fingerprint(New("A", ["B"], None))
    several = [Old("A"), Old("B"), Old("A", ["B"]), Old("A", cleared=None), Old("A", cleared=""), New("A", percent=0)]
    assert len({fingerprint(input) for input in several}) == len(several)


@pytest.mark.parametrize("key", ["", "1234567", "x" * 129, "tab\tin a key", "key-of-é", "\x00" * 8, "zero\u200bwidth"])
async def test_a_key_that_cannot_be_is_refused(client: Client, engine: AsyncEngine, key: str) -> None:
    refused = (await client.ask(CREATE, slug="A", key=key))["createSegment"]
    assert [(e["code"], e["path"]) for e in refused["userErrors"]] == [("IDEMPOTENCY_KEY_INVALID", ["idempotencyKey"])]
    assert (await count(engine, "segments"), await count(engine, "operations")) == (0, 0)


@pytest.mark.parametrize("key", ["12345678", "x" * 128, "~ !'\"$%;--", "        "])
async def test_keys_within_the_rule_work_as_they_are(client: Client, key: str) -> None:
    assert (await client.ask(CREATE, slug="A", key=key))["createSegment"]["replayed"] is False
    assert (await client.ask(CREATE, slug="A", key=key))["createSegment"]["replayed"] is True


async def test_several_mutations_of_one_document_happen_one_after_the_other(client: Client) -> None:
    answer = await client.ask(
        """mutation {
          a: createSegment(input: {slug: "A"}, idempotencyKey: "one-document-1") { replayed }
          b: changeUserSegments(input: {userId: 7, add: ["A"]}, idempotencyKey: "one-document-2") {
            added user { segments { slug } } }
          c: changeUserSegments(input: {userId: 7, add: ["NONE"]}, idempotencyKey: "one-document-3") {
            userErrors { code } user { id } }
          d: changeUserSegments(input: {userId: 7, remove: ["A"]}, idempotencyKey: "one-document-4") {
            removed user { segments { slug } isIn(slug: "A") } }
          e: changeUserSegments(input: {userId: 7, add: ["A"]}, idempotencyKey: "one-document-2") {
            replayed added user { segments { slug } } }
        }"""
    )
    assert answer == {
        "a": {"replayed": False},
        "b": {"added": ["A"], "user": {"segments": [{"slug": "A"}]}},
        "c": {"userErrors": [{"code": "SEGMENT_NOT_FOUND"}], "user": None},
        "d": {"removed": ["A"], "user": {"segments": [], "isIn": False}},
        "e": {"replayed": True, "added": ["A"], "user": {"segments": []}},
    }


async def test_twenty_copies_at_once_have_one_effect_and_one_answer(client: Client, engine: AsyncEngine) -> None:
    await create(client, "A")
    answers = await asyncio.gather(*(change(client, 7, add=["A"], ttlDays=5, key="the-very-key") for _ in range(20)))
    assert Counter(answer["replayed"] for answer in answers) == {False: 1, True: 19}
    assert all(without_replayed(answer) == without_replayed(answers[0]) for answer in answers)
    assert answers[0]["added"] == ["A"]
    assert len(await history(client, 7)) == 1
    assert await count(engine, "operations") == 2


async def test_twenty_copies_over_two_processes_have_one_effect(
    serve: Serve, client: Client, engine: AsyncEngine
) -> None:
    await create(client, "A")
    async with serve() as other:
        answers = await asyncio.gather(
            *(change((client, other)[n % 2], 7, add=["A"], key="the-very-key") for n in range(20))
        )
    assert Counter(answer["replayed"] for answer in answers) == {False: 1, True: 19}
    assert len(await history(client, 7)) == 1


async def test_a_thousand_copies_on_ten_connections_have_one_effect_while_reads_are_answered(
    serve: Serve, engine: AsyncEngine
) -> None:
    async with serve(pool_size=10, max_concurrent=8_000, max_concurrent_per_client=3_000) as client, serve() as reader:
        await create(client, "A")
        await change(client, 8, add=["A"])
        storm = asyncio.gather(*(_copy(client) for _ in range(1_000)))
        reads = 0
        while not storm.done():
            assert await slugs(client, 8) == ["A"]
            assert await slugs(reader, 8, "LATEST") == ["A"]
            reads += 1
        answers = await storm
        assert reads > 0
        assert Counter(answer["replayed"] for answer in answers) == {False: 1, True: 999}
        assert {tuple(answer["added"]) for answer in answers} == {("A",)}
        assert len(await history(client, 7)) == 1
        assert await count(engine, "operations") == 3


async def _copy(client: Client) -> Any:
    variables = {"input": {"userId": 7, "add": ["A"]}, "key": "the-very-key"}
    async with Wire(client) as wire:
        return (await wire.ask(CHANGE, variables))["changeUserSegments"]


async def test_a_storm_of_one_slow_key_takes_no_connection_from_others(serve: Serve, engine: AsyncEngine) -> None:
    async with serve(pool_size=4) as client:
        await create(client, "A", "B")
        async with engine.begin() as tx:
            # Whoever adds to A waits for us.
            await tx.execute(text("SELECT FROM segments WHERE slug = 'A' FOR UPDATE"))
            storm = [asyncio.create_task(change(client, 7, add=["A"], key="the-very-key")) for _ in range(50)]
            for number in range(3):
                assert (await change(client, 100 + number, add=["B"]))["added"] == ["B"]
            assert not any(task.done() for task in storm)
        answers = await asyncio.gather(*storm)
    assert Counter(answer["replayed"] for answer in answers) == {False: 1, True: 49}


async def test_a_copy_that_waits_too_long_for_another_process_is_told_so_and_may_ask_again(
    client: Client, engine: AsyncEngine
) -> None:
    await create(client, "A")
    async with engine.connect() as conn:
        # Another process that has claimed the key and is not done.
        await operations.claim(conn, "anonymous", "changeUserSegments", "slow-key", b"")
        refused = await change(client, 7, add=["A"], key="slow-key")
        assert [(e["code"], e["path"]) for e in refused["userErrors"]] == [
            ("IDEMPOTENCY_IN_PROGRESS", ["idempotencyKey"])
        ]
        await conn.rollback()
    assert (await change(client, 7, add=["A"], key="slow-key"))["replayed"] is False
    assert len(await history(client, 7)) == 1


async def test_copies_of_a_refused_mutation_are_all_refused_and_leave_the_key_unused(client: Client) -> None:
    answers = await asyncio.gather(*(change(client, 7, add=["NONE"], key="the-very-key") for _ in range(20)))
    assert {answer["userErrors"][0]["code"] for answer in answers} == {"SEGMENT_NOT_FOUND"}
    await create(client, "NONE")
    assert (await change(client, 7, add=["NONE"], key="the-very-key"))["replayed"] is False


async def test_of_two_requests_that_race_for_a_key_one_is_told_that_it_is_used(client: Client) -> None:
    await create(client, "A", "B")
    answers = await asyncio.gather(
        *(change(client, 7, add=[slug], key="the-very-key") for slug in ("A", "B") for _ in range(5))
    )
    codes = Counter(answer["userErrors"][0]["code"] if answer["userErrors"] else "ok" for answer in answers)
    assert codes == {"ok": 5, "IDEMPOTENCY_KEY_REUSED": 5}
    assert len(await slugs(client, 7)) == 1


async def test_the_key_of_a_call_whose_transaction_failed_is_unused(client: Client, engine: AsyncEngine) -> None:
    await create(client, "A")
    async with engine.begin() as tx:
        await tx.execute(text("ALTER TABLE membership_events RENAME TO moved_away"))
    try:
        answer = await client.post(CHANGE, {"input": {"userId": 7, "add": ["A"]}, "key": "the-very-key"})
        assert answer["errors"][0]["extensions"]["code"] == "INTERNAL_SERVER_ERROR"
    finally:
        async with engine.begin() as tx:
            await tx.execute(text("ALTER TABLE moved_away RENAME TO membership_events"))
    assert await count(engine, "memberships") == 0
    changed = await change(client, 7, add=["A"], key="the-very-key")
    assert (changed["added"], changed["replayed"]) == (["A"], False)


async def test_a_caller_that_goes_away_does_not_stop_what_it_asked_for(serve: Serve, engine: AsyncEngine) -> None:
    async with serve(execution_timeout=1) as client:
        await create(client, "A")
        async with engine.begin() as tx:
            await tx.execute(text("SELECT FROM segments WHERE slug = 'A' FOR UPDATE"))
            answer = await client.post(CHANGE, {"input": {"userId": 7, "add": ["A"]}, "key": "the-very-key"})
            assert answer["errors"][0]["extensions"]["code"] == "TIMEOUT"
        again = await change(client, 7, add=["A"], key="the-very-key")
        assert (again["added"], again["replayed"], again["user"]["segments"]) == (["A"], True, [{"slug": "A"}])
    assert await count(engine, "membership_events") == 1


async def test_opposite_changes_racing_on_one_user_leave_a_history_that_folds(
    serve: Serve, client: Client, engine: AsyncEngine
) -> None:
    await create(client, "A", "B")
    into_a: dict[str, Any] = {"add": ["A"], "remove": ["B"]}
    into_b: dict[str, Any] = {"add": ["B"], "remove": ["A"]}
    async with serve() as other:
        for _ in range(10):
            answers = await asyncio.gather(
                *(change((client, other)[n % 2], 7, **(into_a if n % 3 else into_b)) for n in range(12))
            )
            assert all(answer["userErrors"] == [] for answer in answers)
    assert await differences(engine) == []
    events = (await client.ask(HISTORY, id=7, first=100))["user"]["history"]["nodes"]
    instants = [(event["at"], event["slug"]) for event in events]
    assert len(set(instants)) == len(instants)


async def test_a_deletion_gets_its_turn_while_users_are_added_all_the_time(client: Client, serve: Serve) -> None:
    await create(client, "A")
    deleted = asyncio.Event()

    async def keep_adding(to: Client, user_id: int) -> None:
        number = 0
        while not deleted.is_set():
            number += 1
            await change(to, user_id, add=["A"], ttlDays=1 + number % 2)

    async with serve() as other:
        adding = [asyncio.create_task(keep_adding((client, other)[n % 2], n)) for n in range(20)]
        while not await slugs(client, 19):
            await asyncio.sleep(0.01)
        payload = await asyncio.wait_for(client.ask(DELETE, slug="A", key=new_key()), timeout=20)
        deleted.set()
        await asyncio.gather(*adding)
    assert payload["deleteSegment"]["userErrors"] == []
    assert await slugs(client, 19) == []


async def test_an_add_that_races_a_deletion_leaves_no_member_behind(
    serve: Serve, client: Client, engine: AsyncEngine
) -> None:
    async with serve() as other:
        for number in range(30):
            await create(client, f"S{number}")
            deleted, *added = await asyncio.gather(
                client.ask(DELETE, slug=f"S{number}", key=new_key()),
                *(change(other, user, add=[f"S{number}"]) for user in range(4)),
            )
            assert deleted["deleteSegment"]["userErrors"] == []
            codes = {error["code"] for answer in added for error in answer["userErrors"]}
            assert codes <= {"SEGMENT_NOT_FOUND"}
    async with engine.connect() as conn:
        late = await conn.execute(
            text("SELECT count(*) FROM memberships m JOIN segments s ON s.id = segment_id WHERE added_at > deleted_at")
        )
        assert late.scalar_one() == 0
    for user in range(4):
        assert await slugs(client, user) == []
        assert await slugs(client, user, "LATEST") == []
