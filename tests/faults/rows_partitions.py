"""Months of the history that have no partition: the next one's, or this one's."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from faults import asking, work
from faults.history import Outcome, Write
from faults.load import SLUGS, Load
from faults.row import row
from faults.stack import Stack

USERS = 5
MONTH = "to_char(date_trunc('month', now() AT TIME ZONE 'UTC') + interval '{ahead} months', 'YYYY_MM')"
# Whoever makes partitions takes this; while we have it the month stays missing.
MAKERS = "SELECT pg_advisory_lock(hashtext('membership_events partitions'))"


async def queue_again(stack: Stack, load: Load) -> None:
    """A cleanup that had no partition to write into five times is given up, until the purge."""
    await work.command(stack, "purge")
    cleaned = "SELECT bool_and(cleaned_at IS NOT NULL) FROM segments WHERE deleted_at IS NOT NULL"

    async def all_clean() -> bool:
        return bool(await work.one(stack, cleaned))

    await work.until(all_clean, "everything is cleaned up")


@row(
    "partition-missing",
    "there is no partition for the next month's history, or none for this one's; then `segmentql migrate`",
    after=queue_again,
)
async def miss_partition(stack: Stack, load: Load) -> None:
    this = stack.random.random() < 0.7
    month = await work.one(stack, f"SELECT {MONTH.format(ahead=0 if this else 1)}")
    async with _makers_held_up(stack):
        await _take_away(stack, month)
        await _look_at_readiness(stack, month)
        writes = [await _write(stack, load, number) for number in range(USERS)]
        if this:
            await _look_at_refusals(stack, writes)
        elif any(write.outcome is not Outcome.OK for write in writes):
            stack.broken.append(f"next month is missing, and a change came to {writes[0].attempts}")
    await work.command(stack, "migrate")
    await _bring_back(stack, month)
    for write in writes:
        await load.attempt(stack.somebody(), write)
        if write.outcome is not Outcome.OK:
            stack.broken.append(f"the month is there again, and a change came to {write.attempts[-1]}")
        await load.read(stack.somebody(), next(iter(write.sets))[0])
    await asyncio.gather(*(_is_ready(stack, server.number) for server in stack.servers))


@asynccontextmanager
async def _makers_held_up(stack: Stack) -> AsyncIterator[None]:
    connection = await stack.postgres.connect()
    try:
        await connection.execute(MAKERS)
        yield
    finally:
        await connection.close()


async def _take_away(stack: Stack, month: str) -> None:
    """With what is in it, which is kept aside."""
    name = f"membership_events_{month}"
    await stack.postgres.ask(
        f"""DO $$ BEGIN
                ALTER TABLE membership_events DETACH PARTITION {name};
                ALTER TABLE {name} RENAME TO taken_away;
            END $$"""
    )


async def _bring_back(stack: Stack, month: str) -> None:
    await stack.postgres.ask(
        """DO $$ BEGIN
               INSERT INTO membership_events SELECT * FROM taken_away;
               DROP TABLE taken_away;
           END $$"""
    )


async def _look_at_readiness(stack: Stack, month: str) -> None:
    """Every server says so, and what to do."""
    problem = f"The history has no partition for {month}. Run: segmentql migrate"

    async def said(number: int) -> bool:
        answer = await stack.servers[number].http.get("/readyz")
        return answer.status_code == 503 and problem in answer.json()["problems"]

    for server in stack.servers:
        await work.until(partial(said, server.number), f"server {server.number} says: {problem}", 5)


async def _is_ready(stack: Stack, number: int) -> None:
    async def is_so() -> bool:
        return (await stack.servers[number].http.get("/readyz")).status_code == 200

    await work.until(is_so, f"server {number} is ready again", 5)


async def _write(stack: Stack, load: Load, number: int) -> Write:
    user, slug, value = f"month-{stack.faults}-{number}", stack.random.choice(SLUGS), load.value()
    input = {"userId": user, "add": [slug], "expiresAt": asking.instant(value)}
    write = load.begin("changeUserSegments", input, {(user, slug): value})
    await load.attempt(stack.somebody(), write)
    return write


async def _look_at_refusals(stack: Stack, writes: list[Write]) -> None:
    """None of them was done, nor its key used up, nor anything of it left."""
    for write in writes:
        (refused,) = write.attempts
        if refused.outcome is Outcome.OK or refused.error != "INTERNAL_SERVER_ERROR":
            stack.broken.append(f"this month is missing, and a change came to {refused}")
    keys = ", ".join(f"'{write.key}'" for write in writes)
    users = ", ".join(f"'{user}'" for write in writes for user, _ in write.sets)
    left = await work.one(
        stack,
        f"""SELECT (SELECT count(*) FROM operations WHERE idempotency_key IN ({keys}))
                   + (SELECT count(*) FROM memberships WHERE user_id IN ({users}))""",
    )
    if left:
        stack.broken.append(f"this month is missing, and refused changes have left {left} rows")
