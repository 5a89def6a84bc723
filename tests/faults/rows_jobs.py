"""Faults of the workers: killed and frozen in the middle of their tasks, or killed by one of these."""

import asyncio
import signal
from functools import partial

from db.tasks import FAILURES, VANISHED
from faults import work
from faults.load import Load
from faults.processes import WORK, Process
from faults.row import row
from faults.stack import Stack

# Each way, so that a task has a middle.
SLOW_SECONDS = 0.015
# In which workers are somewhere between the first and the last task's end.
MIDDLE_SECONDS = 0.8


@row("worker-killed", "kill -9 of the worker in the middle of a report, a cleanup and an import; another one goes on")
async def kill_worker(stack: Stack, load: Load) -> None:
    relay = stack.places[stack.worker.number].postgres
    relay.delay = SLOW_SECONDS
    asked = await work.ask(stack, load)
    await work.under_way(stack, asked)
    await asyncio.sleep(stack.random.uniform(0, MIDDLE_SECONDS))
    await stack.worker.kill()
    relay.heal()
    await work.let_leases_end(stack)
    await stack.worker.start()
    await work.look(stack, asked)


async def second_worker(stack: Stack, _load: Load) -> None:
    await stack.another(WORK)


@row(
    "worker-frozen",
    "SIGSTOP of a worker that has a report; another one takes over when it is not heard of; then SIGCONT",
    before=second_worker,
)
async def freeze_worker(stack: Stack, load: Load) -> None:
    workers = [stack.worker, *stack.added]
    relays = [stack.places[worker.number].postgres for worker in workers]
    for relay in relays:
        relay.delay = SLOW_SECONDS
    asked = await work.ask(stack, load)
    await work.under_way(stack, asked)
    await asyncio.sleep(stack.random.uniform(0, MIDDLE_SECONDS / 2))
    worker = next((each for each in workers if _has_begun(each, asked.report)), stack.random.choice(workers))
    worker.send(signal.SIGSTOP)
    try:
        # In the middle of the other's work, or after it.
        await _let_the_other_go_on(stack, asked, stack.random.choice([0.2, 1, work.PATIENCE_SECONDS]))
    finally:
        worker.send(signal.SIGCONT)
    for relay in relays:
        relay.heal()
    await work.look(stack, asked)


async def _let_the_other_go_on(stack: Stack, asked: work.Work, seconds: float) -> None:
    """Until all has ended, or for so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            while not await work.ended(stack, asked):
                # What it holds locked PostgreSQL takes from it after ten seconds.
                await work.let_leases_end(stack)
                await asyncio.sleep(1)
    except TimeoutError:
        pass


def _has_begun(worker: Process, task_id: str) -> bool:
    return f"begin report {task_id}" in worker.log.read_text()


async def queue_again(stack: Stack, _load: Load) -> None:
    """A cleanup that was at work beside it each time was given up with it: the purge has it done."""
    await work.command(stack, "purge")


@row(
    "poison-task",
    f"a task that kills its worker {FAILURES} times: it is given up; others are worked off meanwhile",
    after=queue_again,
)
async def poison(stack: Stack, load: Load) -> None:
    relay, began = stack.places[stack.worker.number].postgres, work.now()
    relay.delay = SLOW_SECONDS * 2
    await work.fill(load, f"P{stack.faults}", work.members("p", work.MEMBERS))
    until = work.now()
    poisoned, meanwhile = await work.report(load, began, until), stack.random.randint(1, FAILURES - 1)
    for attempt in range(1, FAILURES + 1):
        await work.until(partial(_is_at, stack, poisoned, attempt), f"attempt {attempt} begins")
        await stack.worker.kill()
        if attempt == meanwhile:
            await stack.worker.start()
            await work.look_at_report(stack, await work.report(load, began, until), began, until)
            await work.let_leases_end(stack)
        else:
            await work.let_leases_end(stack)
            await stack.worker.start()
    relay.heal()
    await work.until(lambda: _is_given_up(stack, poisoned), "the task is given up")
    await work.look_at_report(stack, await work.report(load, began, until), began, until)


async def _is_at(stack: Stack, task_id: str, attempt: int) -> bool:
    statement = f"SELECT status = 'RUNNING' AND attempt = {attempt} FROM tasks WHERE id = '{task_id}'"
    return bool(await work.one(stack, statement))


async def _is_given_up(stack: Stack, task_id: str) -> bool:
    found = await work.task(stack, task_id)
    if found["status"] == "FAILED" and found["error"] != VANISHED:
        stack.broken.append(f"the task that kills its workers is {found}")
    return bool(found["status"] == "FAILED")
