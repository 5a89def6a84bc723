"""Whatever is asked, and be it wrong: by its hash a document is answered as it is when sent in full."""

import json
import random
from collections.abc import Callable

import pytest
from comparing import Answer, Connection
from conftest import Serve
from generated_values import Values
from generating import Case, case, document
from persisting import by_hash, hashed
from populating import populate
from sqlalchemy.ext.asyncio import AsyncEngine

from schema import api
from server.documents import LONGEST_CACHED

CASES, SOAKED = 60, 3_000
# What has ended between two answers is in the first alone.
LOOKS = 3


async def test_generated_documents_are_answered_alike_by_hash_and_in_full(
    serve: Serve, engine: AsyncEngine, record_property: Callable[[str, object], None]
) -> None:
    await _compare(serve, engine, record_property, CASES, seed=3)


@pytest.mark.soak
async def test_thousands_of_generated_documents_are_answered_alike_by_hash_and_in_full(
    serve: Serve, engine: AsyncEngine, record_property: Callable[[str, object], None]
) -> None:
    await _compare(serve, engine, record_property, SOAKED, seed=4)


async def _compare(
    serve: Serve, engine: AsyncEngine, record_property: Callable[[str, object], None], cases: int, seed: int
) -> None:
    chance, known, looked_again = random.Random(seed), 0, 0
    async with serve(rate_limit=0) as client, Connection(client) as connection:
        values = Values(await populate(client, engine), chance)
        schema = api.schema()._schema
        for _ in range(cases):
            sent = case(document(schema, values, chance), values, chance)
            for look in range(LOOKS):
                full, named = await _both(connection, sent)
                if _is_unknown(named):
                    # It was sent together with its hash, and not kept: then it was not executed, or is too long.
                    assert b'"data"' not in full.body or len(json.loads(sent.body)["query"]) > LONGEST_CACHED, sent
                    break
                if named.comparable == full.comparable or _failed_below(full):
                    known += 1
                    break
                looked_again += 1
                assert look < LOOKS - 1, f"{sent}\n{full}\n{named}"
    told = f"{cases} documents, {known} of them known by their hashes, {looked_again} looked at again"
    record_property("printed", told)
    assert known > 0.6 * cases
    assert looked_again <= 2 + cases // 50


async def _both(connection: Connection, sent: Case) -> tuple[Answer, Answer]:
    """The answer to the document in full, and then to its hash."""
    asked = json.loads(sent.body)
    asked.pop("extensions", None)
    text = asked.pop("query", None) or "{"
    name = by_hash(text)["extensions"]
    await connection.post(json.dumps({**asked, "query": text, "extensions": name}).encode(), accept=sent.accept)
    full = await connection.post(json.dumps({**asked, "query": text}).encode(), accept=sent.accept)
    named = {"documentId": f"sha256:{hashed(text)}"} if len(text) % 2 else {"extensions": name}
    return full, await connection.post(json.dumps({**asked, **named}).encode(), accept=sent.accept)


def _is_unknown(answer: Answer) -> bool:
    return b"PERSISTED_QUERY_NOT_FOUND" in answer.body


def _failed_below(answer: Answer) -> bool:
    """Whether a field failed, and nothing is left: which of several is told is decided by who is first."""
    return answer.status == 200 and answer.body.endswith(b'"data":null}') and b'"path":[' in answer.body
