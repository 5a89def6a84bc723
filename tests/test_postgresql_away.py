"""PostgreSQL restarts, dies and cuts off answers: what was acknowledged is there, and the rest can be asked again."""

import asyncio
import re
from pathlib import Path

import pytest
from conftest import Client, Serve
from operations import CHANGE, CREATE, change, count, create, differences, history, slugs
from relays import relay_before
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from server import health
from server.embedded import Servers

TERMINATE = text("""
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'
""")


DELIVER = pytest.mark.parametrize("deliver", [True, False], ids=["it happened", "it did not"])


@DELIVER
async def test_when_the_answer_to_a_change_is_lost_the_mutation_happens_once_and_is_answered(
    serve: Serve, servers: Servers, engine: AsyncEngine, tmp_path: Path, *, deliver: bool
) -> None:
    async with relay_before(servers.database_url, tmp_path) as relay, serve(database_url=relay.url) as client:
        await create(client, "A")
        relay.losing, relay.answers_to_lose, relay.deliver = re.compile(b"the-very-key"), 1, deliver
        changed = await change(client, 7, add=["A"], key="the-very-key")
        assert relay.answers_to_lose == 0
        assert (changed["added"], changed["replayed"], changed["userErrors"]) == (["A"], False, [])
        assert await slugs(client, 7) == ["A"]
        assert (await change(client, 7, add=["A"], key="the-very-key"))["replayed"] is True
        assert len(await history(client, 7)) == 1
    assert await count(engine, "operations") == 2


@DELIVER
async def test_when_the_answer_to_a_commit_is_lost_a_mutation_of_several_statements_happens_once_too(
    serve: Serve, servers: Servers, engine: AsyncEngine, tmp_path: Path, *, deliver: bool
) -> None:
    async with relay_before(servers.database_url, tmp_path) as relay, serve(database_url=relay.url) as client:
        relay.answers_to_lose, relay.deliver = 1, deliver
        created = (await client.ask(CREATE, slug="A", key="the-very-key"))["createSegment"]
        assert relay.answers_to_lose == 0
        assert (created["segment"]["slug"], created["replayed"], created["userErrors"]) == ("A", False, [])
        assert (await client.ask(CREATE, slug="A", key="the-very-key"))["createSegment"]["replayed"] is True
    assert (await count(engine, "operations"), await count(engine, "segments")) == (1, 1)


async def test_when_an_answer_is_lost_and_another_process_had_used_the_key_it_is_a_replay(
    serve: Serve, client: Client, servers: Servers, engine: AsyncEngine, tmp_path: Path
) -> None:
    await create(client, "A")
    await change(client, 7, add=["A"], key="the-very-key")
    async with relay_before(servers.database_url, tmp_path) as relay, serve(database_url=relay.url) as other:
        relay.losing, relay.answers_to_lose = re.compile(b"the-very-key"), 1
        changed = await change(other, 7, add=["A"], key="the-very-key")
        assert relay.answers_to_lose == 0
    assert (changed["added"], changed["replayed"]) == (["A"], True)
    assert len(await history(client, 7)) == 1


async def test_when_two_answers_are_lost_the_caller_is_told_to_ask_again_and_the_key_knows(
    serve: Serve, servers: Servers, engine: AsyncEngine, tmp_path: Path
) -> None:
    async with relay_before(servers.database_url, tmp_path) as relay, serve(database_url=relay.url) as client:
        await create(client, "A")
        relay.losing, relay.answers_to_lose, relay.deliver = re.compile(b"the-very-key"), 2, True
        answer = await client.post(CHANGE, {"input": {"userId": 7, "add": ["A"]}, "key": "the-very-key"})
        assert answer["errors"][0]["extensions"]["code"] == "OVERLOADED"
        again = await change(client, 7, add=["A"], key="the-very-key")
        assert (again["added"], again["replayed"]) == (["A"], True)
    assert await count(engine, "membership_events") == 1


async def test_with_postgresql_down_cached_reads_are_answered_and_the_rest_says_to_come_back(
    serve: Serve, servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "SHARED_SECONDS", 0)
    async with relay_before(servers.database_url, tmp_path) as relay, serve(database_url=relay.url) as client:
        await create(client, "A")
        await change(client, 7, add=["A"])
        assert await slugs(client, 7) == ["A"]
        relay.leave()
        assert await slugs(client, 7) == ["A"]
        queries = ["{ user(id: 8) { segments { slug } } }", '{ segment(slug: "A") { id } }']
        queries.append("{ user(id: 7) { segments(freshness: LATEST) { slug } } }")
        for query in queries:
            answer = await client.post(query)
            assert [error["extensions"]["code"] for error in answer["errors"]] == ["OVERLOADED"], query
        answer = await client.post(CHANGE, {"input": {"userId": 7, "remove": ["A"]}, "key": "the-very-key"})
        assert answer["errors"][0]["extensions"]["code"] == "OVERLOADED"
        assert (await client.http.get("/healthz")).status_code == 200
        assert (await client.http.get("/readyz")).status_code == 503
        relay.heal()
        assert (await client.http.get("/readyz")).status_code == 200
        assert (await change(client, 7, remove=["A"], key="the-very-key"))["removed"] == ["A"]
        assert await slugs(client, 7) == []


async def test_connections_that_died_while_idle_cost_no_request(client: Client, engine: AsyncEngine) -> None:
    await create(client, "A")
    await change(client, 7, add=["A"])
    async with engine.connect() as conn:
        assert (await conn.execute(TERMINATE)).scalar_one() >= 2
    assert await slugs(client, 7, "LATEST") == ["A"]
    assert (await change(client, 7, remove=["A"]))["removed"] == ["A"]
    assert len(await history(client, 7)) == 2


async def test_backends_that_die_under_load_lose_nothing_and_double_nothing(
    client: Client, engine: AsyncEngine
) -> None:
    await create(client, "A", "B")

    async def terminate() -> None:
        while True:
            async with engine.connect() as conn:
                await conn.execute(TERMINATE)
            await asyncio.sleep(0.2)

    terminating = asyncio.create_task(terminate())
    for number in range(40):
        key, user_id = f"under-load-{number}", f"user-{number}"
        for _ in range(200):
            answer = await client.post(CHANGE, {"input": {"userId": user_id, "add": ["A", "B"]}, "key": key})
            if "errors" not in answer:
                break
            assert answer["errors"][0]["extensions"]["code"] in ("OVERLOADED", "TIMEOUT")
        else:
            raise AssertionError("it never succeeded")
        assert answer["data"]["changeUserSegments"]["added"] == ["A", "B"]
    terminating.cancel()
    assert await count(engine, "membership_events") == 80
    assert await count(engine, "memberships") == 80
    assert await differences(engine) == []


async def test_a_read_only_primary_is_left_for_a_connection_that_can_write(client: Client, engine: AsyncEngine) -> None:
    """After a failover the pool must not stay with the node that was demoted."""
    await create(client, "A")
    async with engine.connect() as conn:
        database = (await conn.execute(text("SELECT current_database()"))).scalar_one()
    async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as conn:
        await conn.execute(text(f"ALTER DATABASE {database} SET default_transaction_read_only = on"))
        await conn.execute(TERMINATE)
        try:
            answer = await client.post(CHANGE, {"input": {"userId": 7, "add": ["A"]}, "key": "the-very-key"})
            assert answer["errors"][0]["extensions"]["code"] == "OVERLOADED"
        finally:
            await conn.execute(text("SET default_transaction_read_only = off"))
            await conn.execute(text(f"ALTER DATABASE {database} RESET default_transaction_read_only"))
    assert (await change(client, 7, add=["A"], key="the-very-key"))["added"] == ["A"]
