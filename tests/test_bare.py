"""The pools of bare connections, and how statements follow each other on one."""

import asyncio
import struct
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from background import comes_to
from sqlalchemy import make_url
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from db import bare, connections
from db import statement as written
from db.bare import DEPTH, Pool
from db.clock import EPOCH, TAKEN
from db.connections import WRITING
from db.statement import BIGINT, BYTES, INSTANT, INTEGER, TEXT, TEXTS, Statement
from db.wire import ConnectionLost
from server.embedded import Servers

Asked = asyncio.Task[list[Any]]

# Which connection it was, a number that is passed through, and a setting; after some milliseconds.
PROBE = Statement(
    """SELECT pg_backend_pid(), 10 / $2, current_setting($3), repeat('é', $4)
       FROM pg_sleep(CAST($1 AS integer) / 1000.0)""",
    *(INTEGER, INTEGER, TEXT, INTEGER),
)


@pytest.fixture
async def pool(servers: Servers) -> AsyncIterator[Pool]:
    pool = connections.bare_writer(servers.database_url, 2, PROBE)
    yield pool
    await pool.close()


@pytest.fixture
async def single(servers: Servers) -> AsyncIterator[Pool]:
    """With one connection, which is there."""
    pool = connections.bare_writer(servers.database_url, 1, PROBE)
    await backend(pool)
    yield pool
    await pool.close()


def ask(pool: Pool, *, ms: int = 0, divisor: int = 1, setting: str = "lock_timeout", length: int = 0) -> Asked:
    return asyncio.create_task(_asked(pool, ms, divisor, setting, length))


async def _asked(pool: Pool, *values: object) -> list[Any]:
    return read(await pool.fetch(*values), written.integer, written.integer, bytes.decode, bytes.decode)


def read(rows: list[bytes], *columns: Any) -> list[Any]:
    """Each row's columns, as these read them."""
    return [
        tuple(
            None if column is None else as_it_is(column)
            for as_it_is, column in zip(columns, written.columns(row), strict=True)
        )
        for row in rows
    ]


async def backend(pool: Pool) -> int:
    pid: int = (await ask(pool))[0][0]
    return pid


async def both(pool: Pool) -> set[int]:
    """Two connections, which are there and idle."""
    await came([ask(pool), ask(pool)])
    await comes_to(lambda: len(pool._idle), 2)
    return {rows[0][0] for rows in await asyncio.gather(*(ask(pool, ms=20) for _ in range(2)))}


async def came(asked: list[Asked]) -> list[Any]:
    """What each was answered, or the kind of its failure."""
    ended = await asyncio.gather(*asked, return_exceptions=True)
    return [type(each) if isinstance(each, BaseException) else each[0][1] for each in ended]


async def test_a_connection_is_used_again_and_has_the_settings_of_its_kind(pool: Pool, servers: Servers) -> None:
    assert await backend(pool) == await backend(pool)
    assert (await ask(pool))[0][2] == "2s"
    reader = connections.bare_reader(servers.database_url, 1, PROBE)
    assert (await ask(reader, setting="statement_timeout"))[0][2] == "2500ms"
    await reader.close()


async def test_who_wants_to_write_and_may_not_looks_for_another_server(servers: Servers) -> None:
    reader = connections.bare_reader(servers.database_url, 1, Statement("DELETE FROM memberships"))
    with pytest.raises(ConnectionLost):
        await reader.fetch()
    await reader.close()


async def test_no_more_connections_are_made_than_may_be_and_whoever_gets_none_in_a_second_is_told_so(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bare, "WAIT_SECONDS", 0.1)
    monkeypatch.setattr(bare, "FRESH_SECONDS", 0)
    pool = connections.bare_writer(servers.database_url, 2, PROBE)
    asked = [ask(pool, ms=500) for _ in range(2)]
    await asyncio.sleep(0)
    assert pool.in_use == 2
    with pytest.raises(PoolTimeoutError):
        await ask(pool)
    assert pool.waiting == 0
    assert {rows[0][0] for rows in await asyncio.gather(*asked)} >= {await backend(pool)}
    assert pool.in_use == 0
    await pool.close()


async def test_who_waits_for_a_connection_and_leaves_takes_none(single: Pool) -> None:
    busy = [ask(single, ms=50) for _ in range(DEPTH)]
    leaving = [ask(single) for _ in range(3)]
    await asyncio.sleep(0)
    assert (single.in_use, single.waiting) == (1, 3)
    for each in leaving:
        each.cancel()
    assert await came([*busy, *leaving]) == [10] * DEPTH + [asyncio.CancelledError] * 3
    assert (single.waiting, single.in_use) == (0, 0)


async def test_statements_follow_each_other_and_each_has_what_it_came_to(single: Pool) -> None:
    divisors = [1, 2, 0, 5, 0, 10]
    asked = [ask(single, ms=5, divisor=each) for each in divisors]
    failed = asyncpg.DivisionByZeroError
    await asyncio.sleep(0)
    assert single.waiting == len(divisors) - DEPTH
    assert await came(asked) == [10, 5, failed, 2, failed, 1]
    assert (single.waiting, single.in_use) == (0, 0)


async def test_nobody_follows_what_takes_long(servers: Servers) -> None:
    pool = connections.bare_writer(servers.database_url, 2, PROBE)
    assert len(await both(pool)) == 2
    slow = ask(pool, ms=30_000)
    await asyncio.sleep(2 * bare.FRESH_SECONDS)
    # More than would fit behind the other one at once.
    others = [rows[0][0] for rows in await asyncio.gather(*(ask(pool, ms=1) for _ in range(3 * DEPTH)))]
    assert len(set(others)) == 1
    assert not slow.done()
    slow.cancel()
    await pool.close()


async def test_a_statement_that_was_left_is_answered_to_nobody_else(single: Pool) -> None:
    for divisor in (1, 2, 5, 10):
        left = [ask(single, ms=1, divisor=0) for _ in range(2)]
        after = ask(single, divisor=divisor)
        await asyncio.sleep(0)
        for each in left:
            each.cancel()
        assert (await after)[0][1] == 10 / divisor
        assert await came(list(left)) == [asyncio.CancelledError] * 2


async def test_what_arrives_in_pieces_is_put_together(single: Pool) -> None:
    lengths = [3_000_000, 0, 1_000_001, 1]
    found = await asyncio.gather(*(ask(single, length=each) for each in lengths))
    assert [rows[0][3] == "é" * each for rows, each in zip(found, lengths, strict=True)] == [True] * len(lengths)


async def test_what_postgresql_refuses_is_raised_and_the_connection_kept(pool: Pool) -> None:
    before = await backend(pool)
    with pytest.raises(asyncpg.DivisionByZeroError) as refused:
        await ask(pool, divisor=0)
    assert (refused.value.sqlstate, str(refused.value)) == ("22012", "division by zero")
    assert await backend(pool) == before


async def test_a_lost_connection_is_said_so_and_no_other_of_that_time_is_used(pool: Pool) -> None:
    before = await both(pool)
    following = [ask(pool, ms=30_000) for _ in range(2 * DEPTH)]
    other = await asyncpg.connect(**pool._primary.options)  # in no pool
    victim = before.pop()
    await other.execute(f"SELECT pg_terminate_backend({victim})")
    await comes_to(lambda: sum(each.done() for each in following), DEPTH)
    assert await came([each for each in following if each.done()]) == [ConnectionLost] * DEPTH
    await other.execute(f"SELECT pg_terminate_backend({before.pop()})")
    assert await came(following) == [ConnectionLost] * 2 * DEPTH
    assert await backend(pool) not in (victim, *before)
    await other.close()


async def test_a_connection_that_was_ended_while_nobody_used_it_is_not_used(single: Pool) -> None:
    other = await asyncpg.connect(**single._primary.options)  # in no pool
    for _ in range(3):
        before = await backend(single)
        await other.execute(f"SELECT pg_terminate_backend({before})")
        await comes_to(lambda: len(single._wires), 0)
        assert await backend(single) != before
    await other.close()


async def test_a_server_that_does_not_answer_is_waited_for_so_long_and_no_longer(servers: Servers) -> None:
    pool = Pool(connections.primary(servers.database_url), 1, WRITING, PROBE, 0.3)
    before = await backend(pool)
    asked = [ask(pool, ms=30_000), ask(pool), ask(pool)]
    # The first is at work for too long; of the one behind it nobody knows; and the last was not sent.
    assert await came(asked) == [TimeoutError, ConnectionLost, 10]
    # And that each of many takes long is no reason.
    assert await came([ask(pool, ms=200) for _ in range(3)]) == [10, 10, 10]
    assert await backend(pool) != before
    await pool.close()


async def test_a_server_that_is_not_there_is_a_connection_error(unused_port: int) -> None:
    pool = connections.bare_reader(make_url(f"postgresql://nobody@127.0.0.1:{unused_port}/none"), 1, PROBE)
    assert set(await came([ask(pool) for _ in range(10)])) <= {ConnectionRefusedError, ConnectionError}
    assert (pool.in_use, pool.waiting) == (0, 0)
    await pool.close()


async def test_a_statement_that_cannot_be_prepared_says_why(servers: Servers) -> None:
    pool = connections.bare_writer(servers.database_url, 1, Statement("SELECT no_such_function_1()"))
    for _ in range(2):
        with pytest.raises(asyncpg.UndefinedFunctionError):
            await pool.fetch()
    await pool.close()


async def test_connections_that_nobody_uses_hold_nothing(servers: Servers) -> None:
    settings = WRITING | {"statement_timeout": "300ms", "application_name": "segmentql-spare"}
    pool = Pool(connections.primary(servers.database_url), 6, settings, PROBE, 12)
    assert await came([ask(pool) for _ in range(6)]) == [10] * 6
    other = await asyncpg.connect(**pool._primary.options)  # in no pool
    open_ones = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'segmentql-spare' AND xact_start IS NOT NULL"
    )
    await comes_to(lambda: pool.in_use, 0)
    assert await other.fetchval(open_ones) == 0
    await asyncio.sleep(0.4)
    # All six at once, those that were never used among them.
    assert await came([ask(pool, ms=5) for _ in range(6)]) == [10] * 6
    await other.close()
    await pool.close()


async def test_one_connection_that_ends_by_itself_takes_no_other_with_it(pool: Pool) -> None:
    await both(pool)
    other = await asyncpg.connect(**pool._primary.options)  # in no pool
    await other.execute(f"SELECT pg_terminate_backend({await backend(pool)})")
    await comes_to(lambda: len(pool._idle), 1)
    left = list(pool._wires)
    await backend(pool)
    assert pool._wires == left
    await other.close()


async def test_values_of_other_types_than_the_statement_takes_are_a_mistake_that_is_found(servers: Servers) -> None:
    pool = connections.bare_writer(servers.database_url, 1, Statement("SELECT CAST($1 AS integer)", BIGINT))
    with pytest.raises(TypeError):
        await pool.fetch(1)
    await pool.close()


async def test_a_pool_that_was_closed_takes_nothing_more(servers: Servers) -> None:
    pool = connections.bare_writer(servers.database_url, 1, PROBE)
    asked = [ask(pool, ms=50) for _ in range(2)]
    connecting = asyncio.ensure_future(pool.close())
    assert await came(asked) == [ConnectionError, ConnectionError]
    await connecting
    with pytest.raises(ConnectionError):
        await pool.fetch(0, 1, "", 0)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([None] * 6, [None] * 6),
        (["", b"", 0, 0, [], EPOCH], ["", "", 0, 0, [], "2000-01-01T00:00:00+00:00"]),
        (
            [
                "é🙂\t'\"\\",
                bytes(range(256)),
                -(2**31),
                -(2**63),
                ["", "NULL", "{,}", '"', "\\"],
                datetime(1, 1, 1, tzinfo=UTC),
            ],
            [
                "é🙂\t'\"\\",
                bytes(range(256)).hex(),
                -(2**31),
                -(2**63),
                ["", "NULL", "{,}", '"', "\\"],
                "0001-01-01T00:00:00+00:00",
            ],
        ),
        (
            ["a" * 100_000, b"\0", 2**31 - 1, 2**63 - 1, ["é"] * 10_000, TAKEN],
            ["a" * 100_000, "00", 2**31 - 1, 2**63 - 1, ["é"] * 10_000, "9999-12-31T23:59:59.999999+00:00"],
        ),
    ],
    ids=["nothing", "empty", "worst", "longest"],
)
async def test_values_arrive_as_they_are(servers: Servers, values: list[Any], shown: list[Any]) -> None:
    pool = connections.bare_writer(
        servers.database_url,
        1,
        Statement(
            """SELECT jsonb_build_array(one, encode(two, 'hex'), three, four, five, six), one, two, four
               FROM (VALUES (CAST($1 AS text), CAST($2 AS bytea), CAST($3 AS integer), CAST($4 AS bigint),
                             CAST($5 AS text[]), CAST($6 AS timestamptz)))
                    AS sent (one, two, three, four, five, six)""",
            *(TEXT, BYTES, INTEGER, BIGINT, TEXTS, INSTANT),
        ),
    )
    rows = await pool.fetch(*values)
    assert read(rows, written.json, bytes.decode, bytes, written.integer) == [(shown, values[0], values[1], values[3])]
    await pool.close()


@pytest.mark.parametrize("values", [("\ud800", 1, "", 0), (2**31, 1, "", 0), (0, 1, ""), (0, 1, 5, 0)])
async def test_what_cannot_be_written_is_not_sent(single: Pool, values: tuple[Any, ...]) -> None:
    with pytest.raises((UnicodeEncodeError, ValueError, struct.error, AttributeError)):
        await single.fetch(*values)
    assert (single.in_use, single.waiting) == (0, 0)
    assert (await ask(single))[0][1] == 10
