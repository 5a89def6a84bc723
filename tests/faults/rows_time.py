"""Faults of clocks: a database whose day or month ends, and processes whose own clocks are wrong."""

import asyncio
import signal
import time
from datetime import UTC, datetime, timedelta

from databases import migrated

from faults import asking, clocks, work
from faults.history import Outcome, Write
from faults.load import SLUGS, Load
from faults.processes import Process
from faults.row import row
from faults.stack import Stack

KEYS = 40
# Before midnight, when the database is back, and how far from it keys are sent on both sides.
BEFORE_SECONDS, AROUND_SECONDS = 3.0, 0.8
HOURS, STEP_SECONDS = 2 * 3_600, 300
AT_MIDNIGHT = """SELECT count(*) FILTER (WHERE at < '{midnight}') AS before, count(*) FILTER (WHERE at >= '{midnight}')
                 AS after FROM membership_events WHERE user_id LIKE 'midnight-{number}-%'"""


async def without_worker(stack: Stack, load: Load) -> None:
    """What ends soon would end when the clock is set, and the purge would give up keys that were used days before."""
    clocks.library()
    load.soon = 0
    stack.worker.send(signal.SIGTERM)
    await stack.worker.ended()


@row(
    "keys-at-midnight",
    "keys sent again around the end of the database's day, or of its month, when events begin another partition",
    before=without_worker,
)
async def keys_at_midnight(stack: Stack, load: Load) -> None:
    midnight, ahead = await _next_midnight(stack)
    await _set(stack, ahead)
    number = stack.faults
    at = midnight.timestamp() - ahead
    await asyncio.gather(*(_send_around(stack, load, f"midnight-{number}-{key}", at) for key in range(KEYS)))
    ((before, after),) = await stack.postgres.ask(AT_MIDNIGHT.format(midnight=midnight.isoformat(), number=number))
    if not before or not after or before + after != KEYS:
        stack.broken.append(f"of {KEYS} keys {before} happened before {midnight:%Y-%m-%d}, and {after} then")


async def _next_midnight(stack: Stack) -> tuple[datetime, int]:
    """The end of the database's day, or of its month; and how far it has to be ahead of us for it to be soon."""
    day = (await work.one(stack, "SELECT now()")).astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    month = (day.replace(day=1) + timedelta(days=32)).replace(day=1)
    midnight = stack.random.choice([day + timedelta(days=1), month])
    return midnight, int(midnight.timestamp() - BEFORE_SECONDS - time.time())


async def _set(stack: Stack, ahead: int) -> None:
    """Give the database another clock, which goes from one start of it to the next."""
    await stack.postgres.stop()
    stack.postgres.environ = clocks.ahead(ahead)
    await stack.postgres.start()
    # Nobody's clock jumps by a month: the processes would have made the partitions long ago.
    await migrated(stack.postgres.url)


async def _send_around(stack: Stack, load: Load, user: str, at: float) -> None:
    """One key, several times, before and after."""
    value, slug = load.value(), stack.random.choice(SLUGS)
    input = {"userId": user, "add": [slug], "expiresAt": asking.instant(value)}
    write = load.begin("changeUserSegments", input, {(user, slug): value})
    moments = [at + stack.random.uniform(-AROUND_SECONDS, AROUND_SECONDS) for _ in range(3)]
    await asyncio.gather(*(_send(stack, load, write, moment) for moment in moments))
    while write.outcome is not Outcome.OK:
        await load.attempt(stack.somebody(), write)
    await load.read(stack.somebody(), user)


async def _send(stack: Stack, load: Load, write: Write, moment: float) -> None:
    await asyncio.sleep(max(0, moment - time.time()))
    await load.attempt(stack.somebody(), write)


async def wrong_clocks(stack: Stack, load: Load) -> None:
    # What ends while we look tells whose clock it ends by.
    load.soon = 0.5
    await work.until(lambda: work.is_purged(stack), "the first purge")
    processes = [*stack.servers, stack.worker]
    for process, hours in zip(processes, [HOURS, -HOURS, *stack.random.sample([HOURS, -HOURS], 2)], strict=True):
        _clock(process).set(hours)
        process.environ |= _clock(process).environ
    await asyncio.gather(*(process.kill() for process in processes))
    await work.let_leases_end(stack)
    await asyncio.gather(*(process.start() for process in processes))


async def one_run_each(stack: Stack, load: Load) -> None:
    """Of every night there was one run, which nobody had to go on with."""
    runs = await stack.postgres.ask("SELECT slot, state, attempt FROM job_runs ORDER BY slot")
    if [(run["state"], run["attempt"]) for run in runs] != [("FINISHED", 1)] * (stack.faults + 1):
        stack.broken.append(f"of {stack.faults + 1} nights the purges were {runs}")


@row(
    "app-clock",
    "every process's own clock is two hours fast or slow, and steps by five minutes; the database's is right",
    before=wrong_clocks,
    after=one_run_each,
)
async def wrong_clock(stack: Stack, load: Load) -> None:
    processes = [*stack.servers, stack.worker]
    steps = [stack.random.choice([STEP_SECONDS, -STEP_SECONDS]) for _ in processes]
    for process, step in zip(processes, steps, strict=True):
        _clock(process).step(step)
    await stack.postgres.ask(work.ANOTHER_NIGHT)
    # It looks for the night when it starts, and in every minute.
    stack.worker.send(signal.SIGTERM)
    await stack.worker.ended()
    if stack.random.random() < 0.5:
        _clock(stack.worker).step(-2 * (_clock(stack.worker).ahead - steps[-1]))
    await stack.worker.start()
    await asyncio.sleep(stack.random.uniform(0.5, 2))
    for process, step in zip(processes, steps, strict=True):
        _clock(process).step(-step)
    await work.until(lambda: work.is_purged(stack), "the purge of the night")


def _clock(process: Process) -> clocks.Clock:
    return clocks.Clock(process.folder / f"clock{process.number}")
