"""The pools of bare connections."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
from sqlalchemy import make_url
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from db import bare, connections
from db.bare import ConnectionLost, Pool
from server.embedded import Servers

WHO = "SELECT pg_backend_pid() AS pid"


@pytest.fixture
async def pool(servers: Servers) -> AsyncIterator[Pool]:
    pool = connections.bare_writer(servers.database_url, 2)
    yield pool
    await pool.close()


async def backend(pool: Pool) -> int:
    pid: int = (await pool.fetch(WHO))[0]["pid"]
    return pid


async def test_a_connection_is_used_again_and_has_the_settings_of_its_kind(pool: Pool, servers: Servers) -> None:
    assert await backend(pool) == await backend(pool)
    assert (await pool.fetch("SHOW lock_timeout"))[0][0] == "2s"
    reader = connections.bare_reader(servers.database_url, 1)
    with pytest.raises(ConnectionLost):  # as after a failover: whoever wants to write looks for another server
        await reader.fetch("DELETE FROM memberships")
    assert (await reader.fetch("SHOW statement_timeout"))[0][0] == "2500ms"
    await reader.close()


async def test_no_more_connections_are_made_than_may_be_and_whoever_gets_none_in_a_second_is_told_so(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bare, "WAIT_SECONDS", 0.1)
    pool = connections.bare_writer(servers.database_url, 2)
    asked = [asyncio.create_task(pool.fetch("SELECT pg_sleep(0.5), pg_backend_pid()")) for _ in range(2)]
    await asyncio.sleep(0)
    assert pool.in_use == 2
    with pytest.raises(PoolTimeoutError):
        await pool.fetch(WHO)
    assert pool.waiting == 0
    assert {rows[0][1] for rows in await asyncio.gather(*asked)} >= {await backend(pool)}
    assert pool.in_use == 0
    await pool.close()


async def test_who_waits_for_a_connection_and_leaves_takes_none(pool: Pool) -> None:
    busy = [asyncio.create_task(pool.fetch("SELECT pg_sleep(0.2)")) for _ in range(2)]
    await asyncio.sleep(0)
    leaving = [asyncio.create_task(pool.fetch(WHO)) for _ in range(3)]
    await asyncio.sleep(0)
    assert pool.waiting == 3
    for each in leaving:
        each.cancel()
    ended = await asyncio.gather(*busy, *leaving, return_exceptions=True)
    assert [type(each) for each in ended[2:]] == [asyncio.CancelledError] * 3
    assert (pool.waiting, pool.in_use) == (0, 0)


async def test_a_statement_that_was_left_is_answered_to_nobody_else(pool: Pool) -> None:
    for _ in range(20):
        left = asyncio.create_task(pool.fetch("SELECT -1 FROM pg_sleep(0.001)"))
        await asyncio.sleep(0.001)
        left.cancel()
        assert (await pool.fetch("SELECT 1"))[0][0] == 1
        await asyncio.gather(left, return_exceptions=True)


async def test_what_postgresql_refuses_is_raised_and_the_connection_kept(pool: Pool) -> None:
    before = await backend(pool)
    with pytest.raises(asyncpg.DivisionByZeroError):
        await pool.fetch("SELECT 1 / 0")
    assert await backend(pool) == before


async def test_a_lost_connection_is_said_so_and_no_other_of_that_time_is_used(pool: Pool, servers: Servers) -> None:
    busy = asyncio.create_task(pool.fetch("SELECT pg_sleep(30), 'of this test'"))
    before = await backend(pool)
    other = connections.bare_writer(servers.database_url, 1)
    terminated = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(30), ''of%'"
    while not await other.fetch(terminated):
        await asyncio.sleep(0.01)
    with pytest.raises(ConnectionLost):
        await busy
    assert await backend(pool) != before
    await other.close()


async def test_a_server_that_is_not_there_is_a_connection_error(unused_port: int) -> None:
    pool = connections.bare_reader(make_url(f"postgresql://nobody@127.0.0.1:{unused_port}/none"), 1)
    with pytest.raises(ConnectionError):
        await pool.fetch(WHO)
    assert pool.in_use == 0
