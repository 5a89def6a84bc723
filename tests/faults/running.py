"""Running a row: load, fault, end of the fault, recovery; again and again; and then what came of it all."""

import asyncio
import shutil
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from faults import asking, checker, final
from faults.checker import Findings
from faults.history import Outcome
from faults.load import SLUGS, USERS, Load
from faults.processes import EXECUTION_SECONDS, Process
from faults.row import Row
from faults.stack import Stack, running

# Longer than any recovery that is not a failure.
RECOVERY_SECONDS = 60
# What is promised; and what a busy machine may be late by.
RECOVERED_SECONDS, LATE_SECONDS = 5, 1
BETWEEN_SECONDS = (0.3, 0.8)


@dataclass(slots=True)
class Result:
    row: str
    seed: int
    repetitions: int
    faults: int = 0
    findings: Findings = field(default_factory=Findings)
    # From the end of each fault until every process has answered a change and a read.
    recoveries: list[float] = field(default_factory=list)
    # What was answered instead of an answer, and how often.
    errors: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def wrong(self, row: Row, *, timed: bool = True) -> list[str]:
        """What does not hold. A machine that is busy with other things is late: then what takes long is not judged."""
        if not timed:
            return self.findings.wrong(row.staleness + LATE_SECONDS)
        found = self.findings.wrong(row.staleness)
        if max(self.recoveries, default=0) > RECOVERED_SECONDS:
            found.append(f"recovery took {max(self.recoveries):.1f} s")
        if self.findings.longest_request > EXECUTION_SECONDS + 2:
            found.append(f"a request took {self.findings.longest_request:.1f} s")
        return found

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


async def run(
    row: Row, *, repetitions: int, seed: int, folder: Path, template: Path, planted: str | None = None
) -> Result:
    """Strike so many times. The folder is left only where something was wrong."""
    began, result = time.monotonic(), Result(row.name, seed, repetitions)
    await asyncio.to_thread(folder.mkdir, parents=True)
    async with running(
        folder,
        seed=seed,
        template=template,
        settings=row.settings,
        postgres_options=row.postgres_options,
        valkey_options=row.valkey_options,
        planted=planted,
    ) as stack:
        load = Load(stack)
        await load.prepare()
        if row.before is not None:
            await row.before(stack, load)
        async with load.running():
            for _ in range(repetitions):
                await asyncio.sleep(stack.random.uniform(*BETWEEN_SECONDS))
                await row.strike(stack, load)
                stack.faults += 1
                result.recoveries.append(await _recovered(stack, load))
        if row.after is not None:
            await row.after(stack, load)
        await load.settle()
        await _read_all(stack)
        await asyncio.gather(*(server.http.aclose() for server in stack.servers))
        found = await final.look(stack.postgres.url, stack.valkey.client, stack.files, lambda: stack.open_connections)
        result.findings = checker.check(stack.history, found, stack.broken)
        result.faults = stack.faults
        result.errors = dict(Counter(each.error for each in stack.history.attempts() if each.error))
    result.seconds = time.monotonic() - began
    if not result.wrong(row):
        shutil.rmtree(folder, ignore_errors=True)
    return result


async def _recovered(stack: Stack, load: Load) -> float:
    """How long it takes from now until every process has answered a change and a read that came after it."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(RECOVERY_SECONDS):
            await asyncio.gather(*(_answers(server, load) for server in stack.servers))
    except TimeoutError:
        stack.broken.append(f"not every process answered within {RECOVERY_SECONDS} s of the fault's end")
    return time.monotonic() - began


async def _answers(server: Process, load: Load) -> None:
    user, value = f"probe-{server.number}", load.value()
    input = {"userId": user, "add": SLUGS[:1], "expiresAt": asking.instant(value)}
    write = load.begin("changeUserSegments", input, {(user, SLUGS[0]): value})
    while write.outcome is not Outcome.OK:
        await load.attempt(server, write)
        await asyncio.sleep(0.02)
    while (await load.read(server, user)).found is None:
        await asyncio.sleep(0.02)


async def _read_all(stack: Stack) -> None:
    """What everybody is in now: by PostgreSQL, and by every process's own words."""
    probes = [f"probe-{server.number}" for server in stack.servers]
    load = Load(stack)
    for user in (*USERS, *probes):
        await asyncio.gather(*(load.read(server, user) for server in stack.servers))
        last = await load.read(stack.somebody(), user, latest=True)
        assert last.found is not None, last.attempt.error
        stack.history.last.append(last)
