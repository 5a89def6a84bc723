"""The history's partitions: no month is missing, not even one in which nobody was there to make it."""

import asyncio

from databases import fresh, sql

from db import connections, migrate, partitions
from server.embedded import Servers

EXISTING = "SELECT inhrelid FROM pg_inherits WHERE inhparent = 'membership_events'::regclass"
FIRST = """
    DO $$ DECLARE month timestamp := date_trunc('month', now() AT TIME ZONE 'UTC') - interval '5 months';
    BEGIN
        EXECUTE format(
            'CREATE TABLE membership_events_%s PARTITION OF membership_events FOR VALUES FROM (%L) TO (%L)',
            to_char(month, 'YYYY_MM'), month || 'Z', month + interval '1 month' || 'Z');
    END $$
"""


async def prepared(database_url: str, *, made: bool) -> list[str]:
    engine = connections.writer(database_url, pool_size=1)
    await migrate.migrate(engine)
    months: list[str] = []
    if made:
        async with engine.begin() as tx:
            months = await partitions.make(tx)
            assert await partitions.missing(tx) == []
    await engine.dispose()
    return months


def test_months_in_which_no_process_ran_are_made_up_for(servers: Servers) -> None:
    with fresh(servers) as url:
        asyncio.run(prepared(url, made=False))
        sql(url, FIRST)
        assert len(asyncio.run(prepared(url, made=True))) == 4 + partitions.AHEAD + 1
        assert len(sql(url, EXISTING)) == 1 + 4 + 1 + partitions.AHEAD
