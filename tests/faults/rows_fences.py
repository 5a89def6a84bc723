"""A purge that was frozen and wakes up when another one has done its work."""

import asyncio
import signal
import time

from faults import work
from faults.load import Load
from faults.row import row
from faults.rows_purge import RUNNERS, SLOW_SECONDS, second_worker_and_purge
from faults.stack import Stack

EXPIRING, LIVES_SECONDS = 4_000, 4.0
# What somebody who has woken up does at once, and in a while.
AWAKE_SECONDS = 1.5
LAST = f"SELECT state, runner, attempt, stats, finished_at FROM job_runs WHERE slot = {work.TODAY}"


@row(
    "purge-frozen",
    "SIGSTOP of a worker in the middle of the purge; another one takes over and finishes it; then SIGCONT",
    before=second_worker_and_purge,
)
async def freeze_purge(stack: Stack, load: Load) -> None:
    frozen, other = stack.worker, stack.added[0]
    ends = time.time() + LIVES_SECONDS
    await work.fill(load, f"Z{stack.faults}", work.members("z", EXPIRING), int(ends * 1e6))
    for worker in (frozen, other):
        await worker.kill()
    await work.let_leases_end(stack)
    await asyncio.sleep(max(0, ends + 0.05 - time.time()))
    await stack.postgres.ask(work.ANOTHER_NIGHT)
    relay = stack.places[frozen.number].postgres
    relay.delay = SLOW_SECONDS
    await frozen.start()
    await work.until(lambda: _has_begun(stack), "the purge begins")
    frozen.send(signal.SIGSTOP)
    await other.start()
    await work.until(lambda: _is_taken_over(stack), "another one finishes the purge")
    finished = await stack.postgres.ask(LAST)
    frozen.send(signal.SIGCONT)
    relay.heal()
    await asyncio.sleep(AWAKE_SECONDS)
    if (now := await stack.postgres.ask(LAST)) != finished:
        stack.broken.append(f"a purge that had lost its run has changed {finished} to {now}")


async def _has_begun(stack: Stack) -> bool:
    return bool(await stack.postgres.ask(RUNNERS))


async def _is_taken_over(stack: Stack) -> bool:
    await work.let_leases_end(stack)
    return await work.is_purged(stack)
