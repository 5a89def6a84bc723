"""Mutations on the short way: each happens once, and its caller is told what came of it, whoever makes the answer."""

from collections import Counter
from typing import Any

import pytest
from callers import a_token, caller
from comparing import counted
from conftest import Client, Serve
from operations import CHANGE, change, create, new_key
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from db.bare import Pool
from server.fast_path import Begun, FastPath

TWICE = """mutation ($input: ChangeUserSegmentsInput!, $key: String!) {
  one: changeUserSegments(input: $input, idempotencyKey: $key) { added replayed }
  other: changeUserSegments(input: $input, idempotencyKey: $key) { added replayed } }"""


async def learned(client: Client) -> None:
    """Let the document be seen."""
    await create(client, "A", "B")
    await change(client, "somebody", add=["A"])


async def recorded(engine: AsyncEngine, user_id: str) -> tuple[int, int]:
    """How many operations and events there are of the user."""
    async with engine.connect() as conn:
        row = (
            await conn.execute(
                text("""
                    SELECT (SELECT count(*) FROM operations WHERE idempotency_key = 'the-one-key'),
                           (SELECT count(*) FROM membership_events WHERE user_id = :user_id)
                """),
                {"user_id": user_id},
            )
        ).one()
    return row[0], row[1]


async def test_a_change_that_was_seen_before_takes_the_short_way(
    serve: Serve, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve() as client:
        await learned(client)
        planned: Counter[str] = counted(monkeypatch)
        first = await change(client, 7, add=["A"], key="the-one-key")
        again = await change(client, 7, add=["A"], key="the-one-key")
    assert planned["plan"] == 2
    user = {"id": "7", "segments": [{"slug": "A"}]}
    assert (first["added"], first["replayed"], first["user"]) == (["A"], False, user)
    assert again == first | {"replayed": True}
    assert await recorded(engine, "7") == (1, 1)


async def test_refusals_are_the_same_on_either_way(serve: Serve) -> None:
    async with serve() as short, serve(fast_path="off") as long:
        await learned(short)
        for wrong in ({"add": ["NONE"]}, {"add": ["A"], "remove": ["A"]}, {}, {"add": ["A"], "ttlDays": 0}):
            refused = await change(short, 7, **wrong)
            assert refused["userErrors"] != []
            assert refused == await change(long, 7, **wrong)


async def test_an_answer_that_is_given_up_after_the_commit_tells_of_that_one_change(
    serve: Serve, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = FastPath.finish

    async def gives_up(self: FastPath, begun: Begun) -> None:
        assert await finish(self, begun) is not None

    async with serve() as client:
        await learned(client)
        monkeypatch.setattr(FastPath, "finish", gives_up)
        changed = await change(client, 7, add=["A"], key="the-one-key")
        assert (changed["added"], changed["replayed"]) == (["A"], False)
        assert (await change(client, 7, add=["A"], key="the-one-key"))["replayed"] is True
    assert await recorded(engine, "7") == (1, 1)


async def test_what_has_failed_is_not_done_again_for_the_sake_of_its_error(
    serve: Serve, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()

    async def fails(pool: Pool, *_: object) -> Any:
        calls[pool.statement.text] += 1
        raise RuntimeError

    async with serve() as client:
        await learned(client)
        monkeypatch.setattr(Pool, "fetch", fails)
        answer = await client.post(CHANGE, {"input": {"userId": "7", "add": ["A"]}, "key": "the-one-key"})
    assert [error["extensions"]["code"] for error in answer["errors"]] == ["INTERNAL_SERVER_ERROR"]
    assert list(calls.values()) == [1]
    assert await recorded(engine, "7") == (0, 0)


async def test_of_two_in_one_request_the_second_is_a_replay(serve: Serve, engine: AsyncEngine) -> None:
    async with serve() as client:
        await learned(client)
        for key in (new_key(), "the-one-key"):
            user_id = key[-8:]  # the two are of different users
            answer = await client.ask(TWICE, input={"userId": user_id, "add": ["A"]}, key=key)
            assert answer == {"one": {"added": ["A"], "replayed": False}, "other": {"added": ["A"], "replayed": True}}
    assert await recorded(engine, "-one-key") == (1, 1)


async def test_who_may_only_read_changes_nothing_by_a_document_that_others_have_taught(
    serve: Serve, engine: AsyncEngine
) -> None:
    async with serve(authentication="required") as client:
        writer, reader = await a_token(engine, "admin"), await a_token(engine, "read")
        async with caller(client, writer) as one, caller(client, reader) as other:
            await learned(one)
            answer = await other.post(CHANGE, {"input": {"userId": "7", "add": ["A"]}, "key": "the-one-key"})
    assert [error["extensions"]["code"] for error in answer["errors"]] == ["FORBIDDEN"]
    assert await recorded(engine, "7") == (0, 0)
