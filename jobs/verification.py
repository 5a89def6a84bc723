"""Whether the database keeps its promises: everything is looked at once, in slices, while everybody goes on working."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from db import partitions, tasks, verification, verified_operations, verified_rollouts, verified_tasks
from db.files import ERRORS, Files, path
from db.tasks import Task
from db.transactions import LIMIT_SECONDS
from db.verification import EXAMPLES, Found
from db.verified_operations import Suspect
from db.verified_tasks import Import, Written

# Rows that one statement looks at. Whoever drops a month of history waits for it, and not for long (db/partitions.py).
ROWS = 10_000
SEGMENTS = 1_000
IMPORTS = 100
# So many files are asked for at once: a bucket takes its time to answer.
FILES = 20
# An import has ended when its last event is dated.
WINDOW = timedelta(seconds=LIMIT_SECONDS)
# What is searched at a time for events that are not where they should be, from so much earlier on.
STEP = timedelta(days=1)
# When so many operations are known to lack events, those of further ones are not searched for all over history.
MANY = 1_000
# Told after each slice: the check, how many rows it has looked at, and about how many there are.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    # What it looked at: how many rows.
    looked: int
    differences: int
    # Sentences about the first of them.
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    checks: tuple[Check, ...]

    @property
    def differences(self) -> int:
        return sum(check.differences for check in self.checks)


def _silent(_check: str, _looked: int, _about: int) -> None:
    pass


@dataclass(slots=True)
class _Tally:
    """A check at work."""

    name: str
    about: int
    progress: Progress
    looked: int = 0
    differences: int = 0
    examples: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.progress(self.name, 0, self.about)

    def add(self, found: Found) -> None:
        self.looked += found.looked
        self.differences += found.differences
        self.examples += (found.examples or [])[: EXAMPLES - len(self.examples)]
        self.progress(self.name, self.looked, max(self.looked, self.about))

    def check(self) -> Check:
        self.progress(self.name, self.looked, self.looked)
        return Check(self.name, self.looked, self.differences, tuple(self.examples))


async def verify(
    exporter: AsyncEngine,
    store: Files,
    *,
    task_days: int,
    checksums: bool = False,
    progress: Progress = _silent,
) -> Report:
    """Look at everything once. Tasks are forgotten after `task_days`; `checksums` reads every file from end to end."""
    return Report(
        (
            *await memberships(exporter, progress),
            await _segments(exporter, progress),
            await _rollouts(exporter, progress),
            await _operations(exporter, task_days, progress),
            await _imports(exporter, progress),
            await _files(exporter, store, progress, checksums=checksums),
        )
    )


async def memberships(exporter: AsyncEngine, progress: Progress = _silent) -> tuple[Check, ...]:
    """Whether history, folded, gives exactly the memberships, and each event names its operation."""
    async with _connected(exporter) as conn:
        tallies = {
            name: _Tally(name, await verification.about(conn, table), progress)
            for name, table in verification.FOLDED.items()
        }
        after, more = None, True
        while more:
            last = await verification.boundary(conn, after, ROWS)
            for name, found in (await verification.fold(conn, after, last)).items():
                tallies[name].add(found)
            after, more = last, last is not None
    return tuple(tally.check() for tally in tallies.values())


async def _segments(exporter: AsyncEngine, progress: Progress) -> Check:
    tally = _Tally("segments", 0, progress)
    async with _connected(exporter) as conn:
        after: int | None = 0
        while after is not None:
            found = await verification.segments(conn, after, SEGMENTS)
            tally.add(found)
            after = found.last
    return tally.check()


async def _rollouts(exporter: AsyncEngine, progress: Progress) -> Check:
    async with _connected(exporter) as conn:
        about = [await verification.about(conn, table) for table in ("rollout_changes", "exclusions")]
        tally = _Tally("rollouts", sum(about), progress)
        after: int | None = 0
        while after is not None:
            found = await verified_rollouts.changes(conn, after, SEGMENTS)
            tally.add(found)
            after = found.last
        user: str | None = ""
        while user is not None:
            last = await verified_rollouts.boundary(conn, user, ROWS)
            tally.add(await verified_rollouts.exclusions(conn, user, last))
            user = last
    return tally.check()


async def _operations(exporter: AsyncEngine, task_days: int, progress: Progress) -> Check:
    async with _connected(exporter) as conn:
        tally = _Tally("operations", await verification.about(conn, "operations"), progress)
        after = 0
        while (some := await verified_operations.next_slice(conn, after, ROWS)) is not None:
            tally.add(await verified_operations.outcomes(conn, after, some.last, task_days))
            suspects = await verified_operations.suspects(conn, after, some)
            if suspects and tally.differences < MANY:
                sentences = await _certain(conn, suspects)
                tally.add(Found(0, len(sentences), sentences))
            else:
                tally.add(Found(0, len(suspects), None))
            after = some.last
    return tally.check()


async def _certain(conn: AsyncConnection, suspects: list[Suspect]) -> list[str]:
    """What is wrong with operations whose events are not around them: a clock that lagged dates them much later."""
    begin = min(suspect.at for suspect in suspects) - STEP
    end = await verification.end_of_history(conn)
    changes, marks = Counter[int](), Counter[int]()
    while end is not None and begin < end:
        # The events of an operation are there all at once and for good, so they may be counted one day after the other.
        there = await verified_operations.written(conn, [suspect.id for suspect in suspects], begin, begin + STEP)
        for operation_id, (number, mark) in there.items():
            changes[operation_id] += number
            marks[operation_id] += mark
        begin += STEP
    # Unless their month was dropped meanwhile.
    oldest = await partitions.oldest(conn)
    return [
        f"operation {each.id} (at {each.at}) tells of {each.changes} changes, "
        + (f"history of {changes[each.id]}" if changes[each.id] != each.changes else "history of others")
        for each in suspects
        if (changes[each.id], marks[each.id]) != (each.changes, each.mark) and oldest is not None and each.at >= oldest
    ]


async def _imports(exporter: AsyncEngine, progress: Progress) -> Check:
    tally = _Tally("imports", 0, progress)
    after: UUID | None = None
    async with _connected(exporter) as conn:
        while some := await verified_tasks.imports(conn, after, IMPORTS):
            for each in some:
                written = await verified_tasks.written(conn, each, each.started_at, each.finished_at + WINDOW)
                if not each.tells_of(written) and tally.differences < EXAMPLES:
                    written = await _certainly_written(conn, each)
                wrong = not each.tells_of(written) and await _kept(conn, each.started_at)
                tally.add(Found(1, int(wrong), [_untrue(each, written)] if wrong else None))
            after = some[-1].id
    return tally.check()


async def _kept(conn: AsyncConnection, at: datetime) -> bool:
    """Whether the month was not dropped meanwhile."""
    oldest = await partitions.oldest(conn)
    return oldest is not None and at >= oldest


async def _certainly_written(conn: AsyncConnection, some: Import) -> Written:
    """What all of history has of an import that does not tell of what is around it."""
    begin, written = some.started_at - STEP, Written(0, 0, 0, 0)
    end = await verification.end_of_history(conn)
    while end is not None and begin < end:
        written += await verified_tasks.written(conn, some, begin, begin + STEP)
        begin += STEP
    return written


def _untrue(some: Import, written: Written) -> str:
    told = [some.added, some.updated, some.removed]
    there = [written.added, written.updated, written.removed]
    names = ("added", "updated", "removed")
    tells = ", ".join(f"{'no number' if n is None else n} {name}" for n, name in zip(told, names, strict=True))
    has = ", ".join(f"{n} {name}" for n, name in zip(there, names, strict=True))
    elsewhere = f" and {written.elsewhere} in other segments" if written.elsewhere else ""
    return f"import {some.id} (operation {some.operation_id}) tells of {tells}, history of {has}{elsewhere}"


async def _files(exporter: AsyncEngine, store: Files, progress: Progress, *, checksums: bool) -> Check:
    tally = _Tally("files of tasks", 0, progress)
    after: UUID | None = None
    # Of one file at a time some megabytes are in memory.
    rows = 1 if checksums else FILES
    async with _connected(exporter) as conn:
        while ids := await verified_tasks.with_files(conn, after, rows):
            found = await tasks.of_files(conn, ids)
            sentences = await asyncio.gather(*(_wrong(store, each, checksums) for each in found.values()))
            wrong = {task_id: sentence for task_id, sentence in zip(found, sentences, strict=True) if sentence}
            # Before a file is removed its task says so: only of those that still do not it is missed.
            now = await tasks.of_files(conn, wrong) if wrong else {}
            missed = [
                f"the file of task {task_id} {sentence}"
                for task_id, sentence in wrong.items()
                if task_id in now and now[task_id].file_removed_at is None
            ]
            tally.add(Found(len(found), len(missed), missed))
            after = ids[-1]
    return tally.check()


async def _wrong(store: Files, task: Task, checksums: bool) -> str | None:
    result = task.result or {}
    if not result.keys() >= {"attempt", "bytes", "sha256"}:
        return "is not named by the task's result"
    file = path(task.id, result["attempt"])
    try:
        size = await store.size(file)
        if size is None:
            return "is not there"
        if size != result["bytes"]:
            return f"has {size} bytes, not {result['bytes']}"
        if checksums and await _sha256(store, file) != result["sha256"]:
            return "has other bytes than were written"
    except FileNotFoundError:
        return "is not there"
    except ERRORS as error:
        return f"cannot be read: {error}"
    return None


async def _sha256(store: Files, file: str) -> str:
    digest = hashlib.sha256()
    async for chunk in store.reading(file):
        digest.update(chunk)
    return digest.hexdigest()


@asynccontextmanager
async def _connected(exporter: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Each statement commits by itself: none sees an old state, or keeps one from vacuum."""
    async with exporter.connect() as conn:
        yield await conn.execution_options(isolation_level="AUTOCOMMIT")
