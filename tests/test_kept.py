"""Answers whose text is kept: what has changed since is in the next one."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from comparing import Connection, both, counted
from conftest import Client, Serve
from operations import change, create, delete

# In each of these the list takes another place, or there is more than one; the last makes no text.
QUERIES = [
    "query ($ids: [ID!]!) { users(ids: $ids) { id memberships { segment { slug } expiresAt } __typename } }",
    "query ($ids: [ID!]!) { users(ids: $ids) { segments { slug } who: id } }",
    "query ($ids: [ID!]!) { users(ids: $ids) { id segments { slug } memberships { source } } }",
    'query ($ids: [ID!]!) { users(ids: $ids) { id segments(only: ["A", "C"]) { slug } } }',
]
IDS = ["7", "8", "9", "7", *(f"nobody-{number}" for number in range(10))]


async def asked(connection: Connection, query: str, ids: Sequence[str], times: int = 4) -> Any:
    """Asked so often a text is made and used; all answers are the same."""
    body = json.dumps({"query": query, "variables": {"ids": ids}}).encode()
    answers = [json.loads((await connection.post(body)).body) for _ in range(times)]
    assert answers == [answers[0]] * times
    return answers[0]


async def test_what_is_kept_as_text_is_each_users_own_and_as_current_as_any_other(
    client: Client, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = counted(monkeypatch)
    await create(client, "A", "B", "C")
    async with serve(fast_path="off") as long, both(client, long) as (short, other):

        async def compare() -> None:
            for query in QUERIES:
                for ids in (IDS, IDS[:1], IDS[::-1]):
                    answer = await asked(short, query, ids)
                    assert answer == await asked(other, query, ids, times=1)
                    assert len(answer["data"]["users"]) == len(ids)

        await change(client, "7", add=["A", "B"])
        await change(client, "8", add=["B", "C"], ttlDays=3)
        await compare()
        await change(client, "7", remove=["A"])
        await compare()
        await delete(client, "C")
        await compare()
    assert set(planned) == {"plan"}
    assert planned["plan"] > 100
