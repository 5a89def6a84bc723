"""Faults of the nightly purge: several at once, killed in its middle, and a segment that is deleted meanwhile."""

import asyncio
import os
import signal
import time
from contextlib import suppress

from faults import work
from faults.load import Load
from faults.processes import WORK, Process
from faults.row import row
from faults.stack import Stack

# In each of two segments, more than a purge has in its hands at a time; and more than a cleanup.
EXPIRING, STAYING = 6_500, 1_500
LIVES_SECONDS = 5.0
# Each way, so that a purge has a middle; and within how long all of them begin.
SLOW_SECONDS, BEGIN_SECONDS = 0.04, 0.5
RUNNERS = f"SELECT runner FROM job_runs WHERE slot = {work.TODAY} AND state = 'RUNNING' AND stats <> '{{}}'"


async def second_worker_and_purge(stack: Stack, load: Load) -> None:
    await stack.another(WORK)
    await work.until(lambda: work.is_purged(stack), "the first purge")


@row(
    "midnight-purge",
    "two workers and an operator purge at the same time, a segment is deleted, and at times the purge's worker killed",
    before=second_worker_and_purge,
)
async def purge_at_midnight(stack: Stack, load: Load) -> None:
    expiring, deleted = [f"X{stack.faults}", f"Y{stack.faults}"], f"D{stack.faults}"
    ends = time.time() + LIVES_SECONDS
    users = work.members("x", EXPIRING)
    await asyncio.gather(
        *(work.fill(load, slug, users, int(ends * 1e6)) for slug in expiring),
        work.fill(load, deleted, users[:STAYING]),
    )
    workers = [stack.worker, *stack.added]
    await asyncio.gather(*(worker.kill() for worker in workers))
    await work.let_leases_end(stack)
    await asyncio.sleep(max(0, ends + 0.05 - time.time()))
    await stack.postgres.ask(work.ANOTHER_NIGHT)
    for worker in workers:
        stack.places[worker.number].postgres.delay = SLOW_SECONDS
    by_hand = asyncio.create_task(work.command(stack, "purge"))
    await asyncio.gather(*(_start_soon(stack, worker) for worker in workers))
    await _somewhere_in_the_middle(stack)
    await load.write("deleteSegment", deleted, {})
    if stack.random.random() < 0.5:
        await _kill_the_purge(stack, workers)
    for worker in workers:
        stack.places[worker.number].postgres.heal()
    await by_hand
    await work.until(lambda: work.is_purged(stack), "the purge is finished")
    await work.until(lambda: work.is_clean(stack, deleted), "the segment is cleaned up")
    await _look(stack)
    for slug in expiring:
        await work.look_at_cleanup(stack, slug, {("EXPIRED", user): 1 for user in users})
    await work.look_at_cleanup(stack, deleted, {("SEGMENT_DELETED", user): 1 for user in users[:STAYING]})


async def _start_soon(stack: Stack, worker: Process) -> None:
    await asyncio.sleep(stack.random.uniform(0, BEGIN_SECONDS))
    await worker.start()


async def _somewhere_in_the_middle(stack: Stack) -> None:
    """Some have left, or all."""
    await work.until(lambda: _has_begun(stack), "a worker purges")
    await asyncio.sleep(stack.random.uniform(0, 0.3))


async def _kill_the_purge(stack: Stack, workers: list[Process]) -> None:
    """Whoever is at it, and has another one go on."""
    for found in await stack.postgres.ask(RUNNERS):
        pid = int(found["runner"].rpartition(":")[2])
        worker = next(each for each in workers if each.process is not None and each.process.pid == pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        await worker.ended()
        await work.let_leases_end(stack)
        await worker.start()


async def _has_begun(stack: Stack) -> bool:
    return bool(await stack.postgres.ask(RUNNERS)) or await work.is_purged(stack)


async def _look(stack: Stack) -> None:
    """Every night has one run, which was finished, and so have those by hand; nothing is left that ended before."""
    statement = "SELECT slot, state, attempt, error FROM job_runs WHERE state <> 'FINISHED'"
    if unfinished := await stack.postgres.ask(statement):
        stack.broken.append(f"runs of the purge are not finished: {unfinished}")
    nights = "slot = date_trunc('day', slot, 'UTC')"
    for statement, expected, what in (
        (f"SELECT count(*) FROM job_runs WHERE {nights}", stack.faults + 2, "nights"),
        (f"SELECT count(*) FROM job_runs WHERE NOT ({nights})", stack.faults + 1, "runs by hand"),
        (f"SELECT count(*) FROM memberships WHERE expires_at < {work.TODAY}", 0, "memberships from before the night"),
    ):
        if (found := await work.one(stack, statement)) != expected:
            stack.broken.append(f"there are {found} {what}, not {expected}")
    counted, least, most = await _counts(stack)
    if not least <= counted <= most:
        stack.broken.append(f"the purges count {counted} memberships, and it was {least} to {most} that left by them")


async def _counts(stack: Stack) -> tuple[int, int, int]:
    """What the runs count, all that only they can have moved, and all that has expired: changes move some of it."""
    ((counted, expired),) = await stack.postgres.ask(
        """SELECT (SELECT sum((stats ->> 'memberships')::int) FROM job_runs),
                  (SELECT count(*) FROM membership_events WHERE action = 'EXPIRED')"""
    )
    return counted, 2 * EXPIRING * (stack.faults + 1), expired
