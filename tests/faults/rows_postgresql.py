"""Faults of PostgreSQL and of the way to it."""

import asyncio
import os
import re
import signal
from contextlib import suppress

from faults.load import Load
from faults.row import row
from faults.stack import Stack

BACKENDS = """SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
              AND backend_type = 'client backend'"""
# A change of one user is one statement, which commits itself; it names its field.
COMMIT = re.compile(b"COMMIT|changeUserSegments")
BUSY = f"{BACKENDS} AND state <> 'idle'"


@row("backend-terminated", "pg_terminate_backend of every connection at work, or of all")
async def terminate_backends(stack: Stack, load: Load) -> None:
    which = stack.random.choice([BUSY, BACKENDS])
    for _ in range(20):
        await stack.postgres.ask(f"SELECT pg_terminate_backend(pid) FROM ({which}) AS backends")
        await asyncio.sleep(0.02)


@row("backend-killed", "kill -9 of a PostgreSQL backend at work: PostgreSQL ends all others, and recovers")
async def kill_backend(stack: Stack, load: Load) -> None:
    pids: list[int] = []
    while not pids:
        pids = [found["pid"] for found in await stack.postgres.ask(BUSY)]
    with suppress(ProcessLookupError):
        os.kill(stack.random.choice(pids), signal.SIGKILL)
    while True:
        await asyncio.sleep(0.05)
        with suppress(Exception):
            await stack.postgres.ask("SELECT 1")
            return


@row("postgresql-restarted", "pg_ctl restart -m immediate: no checkpoint, recovery from the log")
async def restart(stack: Stack, load: Load) -> None:
    await stack.postgres.stop("immediate")
    await stack.postgres.start()


@row("postgresql-frozen", "SIGSTOP of PostgreSQL and all its backends; then SIGCONT")
async def freeze(stack: Stack, load: Load) -> None:
    stack.postgres.freeze()
    try:
        await asyncio.sleep(stack.random.choice([0.5, 3, 8]))
    finally:
        stack.postgres.thaw()


@row("black-hole", "what one server sends PostgreSQL, or is sent, does not arrive, and nobody is told")
async def black_hole(stack: Stack, load: Load) -> None:
    relay = stack.places[stack.somebody().number].postgres
    if stack.random.random() < 0.5:
        relay.black_hole_there = True
    else:
        relay.black_hole_back = True
    await asyncio.sleep(stack.random.choice([2, 6, 14]))
    relay.heal()


@row("commit-answer-cut", "the connection ends between a COMMIT and its answer, on every server")
async def cut_commits(stack: Stack, load: Load) -> None:
    relays = [place.postgres for place in stack.places[:-1]]
    before = sum(relay.lost_answers for relay in relays)
    for relay in relays:
        relay.losing, relay.answers_to_lose = COMMIT, 3
    async with asyncio.timeout(20):
        while any(relay.answers_to_lose for relay in relays):
            await asyncio.sleep(0.02)
    stack.faults += sum(relay.lost_answers for relay in relays) - before - 1


@row("postgresql-cut-off", "one server finds no PostgreSQL, while the others do")
async def cut_off(stack: Stack, load: Load) -> None:
    relay = stack.places[stack.somebody().number].postgres
    relay.leave()
    await asyncio.sleep(stack.random.uniform(0.1, 3))
    relay.heal()
