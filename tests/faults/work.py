"""Background work that a fault strikes: a report, a cleanup and an import, and what has to have come of them."""

import asyncio
import csv
import hashlib
import io
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from faults import asking
from faults.history import Outcome
from faults.load import Load
from faults.processes import Process
from faults.stack import Stack

MEMBERS = 1_500
# Longer than a frozen worker's transaction is left alone, and a task is tried again.
PATIENCE_SECONDS = 60
# How long a worker takes to tidy up behind a task.
TIDY_SECONDS = 2
TASK = """query ($id: ID!) { task(id: $id) {
    status error rowsDone uploadUrl file { url bytes rows sha256 } importResult { rows added } } }"""
TODAY = "date_trunc('day', now(), 'UTC')"
# As if the last midnight were the next one: what was done then was done on some night before.
ANOTHER_NIGHT = f"""UPDATE job_runs SET slot = slot - make_interval(days => (SELECT count(*)::int FROM job_runs))
                    WHERE slot = {TODAY}"""
# Of those that nobody holds locked: a frozen worker may.
SILENT = """
    WITH silent AS (
        SELECT {key} FROM {table} WHERE {which} AND heartbeat_at > clock_timestamp() - interval '10 minutes'
        FOR UPDATE SKIP LOCKED
    )
    UPDATE {table} SET heartbeat_at = heartbeat_at - interval '1 hour' WHERE ({key}) IN (SELECT * FROM silent)
"""
Row = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class Work:
    """What was asked for: a report of a period that is over, and what happened to two segments."""

    began: datetime
    until: datetime
    report: str
    imported: str
    # The segment that is imported into, and the one that is cleaned up.
    filled: str
    emptied: str


async def ask(stack: Stack, load: Load) -> Work:
    filled, emptied, began = f"I{stack.faults}", f"E{stack.faults}", now()
    await load.write("createSegment", {"slug": filled}, {})
    await fill(load, emptied, members("e", MEMBERS))
    await load.write("deleteSegment", emptied, {})
    imported = await _import(stack, load, filled)
    until = now()
    return Work(began, until, await report(load, began, until), imported, filled, emptied)


def members(letter: str, number: int) -> list[str]:
    return [f"{letter}-{each:05}" for each in range(number)]


async def fill(load: Load, slug: str, users: list[str], expires: int | None = None) -> None:
    """Make a segment with these members. None of them is anybody else's."""
    await load.write("createSegment", {"slug": slug}, {})
    expires_at = asking.instant(load.value() if expires is None else expires)
    await load.write("addUsersToSegment", {"slug": slug, "userIds": users, "expiresAt": expires_at}, {})


async def report(load: Load, began: datetime, until: datetime) -> str:
    period = {"from": began.isoformat(), "to": until.isoformat()}
    return _task((await load.write("generateReport", period, {})).answers())


async def _import(stack: Stack, load: Load, slug: str) -> str:
    asked = await load.write("importMembers", {"slug": slug}, {})
    id_ = _task(asked.answers())
    content = "user_id\n" + "\n".join(members("i", MEMBERS)) + "\n"
    url = (await task(stack, id_))["uploadUrl"]
    answer = await stack.somebody().http.put(url, content=content)
    assert answer.status_code == 200, answer.text
    return id_


def _task(answers: list[dict[str, Any]]) -> str:
    id_: str = answers[0]["task"]["id"]
    return id_


async def task(stack: Stack, id_: str) -> Any:
    attempt = await asking.ask(stack.somebody(), TASK, {"id": id_})
    assert attempt.outcome is Outcome.OK, attempt.error
    assert attempt.payload is not None
    return attempt.payload["task"]


async def let_leases_end(stack: Stack) -> None:
    """As if nobody had been heard of for a long time."""
    await stack.postgres.ask(SILENT.format(table="tasks", which="status = 'RUNNING'", key="id"))
    night = f"state = 'RUNNING' AND slot = {TODAY}"
    await stack.postgres.ask(SILENT.format(table="job_runs", which=night, key="job, slot"))


async def one(stack: Stack, statement: str) -> Any:
    """The only value of the only row."""
    ((value,),) = await stack.postgres.ask(statement)
    return value


async def until(is_so: Callable[[], Awaitable[bool]], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    limit = time.monotonic() + seconds
    while not await is_so():
        assert time.monotonic() < limit, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.03)


async def under_way(stack: Stack, work: Work) -> None:
    """Wait until a worker has begun with one of them."""

    async def begun() -> bool:
        waiting = f"SELECT count(*) FROM tasks WHERE status = 'QUEUED' AND id IN ('{work.report}', '{work.imported}')"
        return bool(await one(stack, waiting) < 2)

    await until(begun, "a worker begins with a task")


async def look(stack: Stack, work: Work) -> None:
    """Wait until all has ended, and see that it is what was asked for, once."""
    await until(lambda: ended(stack, work), "the tasks end")
    await look_at_report(stack, work.report, work.began, work.until)
    await _look_at_import(stack, work)
    await look_at_cleanup(stack, work.emptied, {("SEGMENT_DELETED", user): 1 for user in members("e", MEMBERS)})
    await _look_at_files(stack, work.imported)


async def ended(stack: Stack, work: Work) -> bool:
    if not await is_clean(stack, work.emptied):
        return False
    return await _has_ended(stack, work.report) and await _has_ended(stack, work.imported)


async def _has_ended(stack: Stack, id_: str) -> bool:
    return (await task(stack, id_))["status"] in ("SUCCEEDED", "FAILED")


async def is_purged(stack: Stack) -> bool:
    """Whether the purge of the last midnight is finished."""
    return bool(await one(stack, f"SELECT count(*) FROM job_runs WHERE slot = {TODAY} AND state = 'FINISHED'"))


async def is_clean(stack: Stack, slug: str) -> bool:
    return bool(await one(stack, f"SELECT cleaned_at IS NOT NULL FROM segments WHERE slug = '{slug}'"))


async def look_at_report(stack: Stack, id_: str, began: datetime, until_: datetime) -> None:
    """Wait for its end, and see that it has what happened then, in one file."""
    await until(lambda: _has_ended(stack, id_), "the report is made")
    found = await task(stack, id_)
    if found["status"] != "SUCCEEDED":
        stack.broken.append(f"report {id_} is {found}")
        return
    answer = await stack.somebody().http.get(found["file"]["url"])
    (_, *rows), size = csv.reader(io.StringIO(answer.text, newline="")), len(answer.content)
    told = (size, hashlib.sha256(answer.content).hexdigest(), len(rows), len(rows))
    if told != (*(found["file"][each] for each in ("bytes", "sha256", "rows")), found["rowsDone"]):
        stack.broken.append(f"the file of report {id_} is {told}, and it says {found}")
    expected, has = Counter(await _happened(stack, began, until_)), Counter[Row]()
    has.update((user, slug, action, at) for user, slug, action, at in rows)
    if has != expected:
        differences = [*(expected - has).items(), *(has - expected).items()]
        stack.broken.append(f"report {id_} differs from what happened: {len(differences)}, {differences[:3]}")
    await _look_at_files(stack, id_)


async def _happened(stack: Stack, began: datetime, until: datetime) -> list[Row]:
    """All that happened then, from the bare tables: the events, and the ends that no job has written yet."""
    # One statement: what a change moves from one table to the other meanwhile is in one of them.
    found = await stack.postgres.ask(
        """SELECT user_id, slug, CAST(action AS text), at, NULL AS expires_at, NULL AS deleted_at
           FROM membership_events JOIN segments ON segments.id = segment_id
           UNION ALL
           SELECT user_id, slug, NULL, NULL, NULLIF(expires_at, 'infinity'), deleted_at
           FROM memberships JOIN segments ON segments.id = segment_id"""
    )
    happened = []
    for user, slug, action, at, expires, deleted in found:
        if action is not None:
            happened.append((user, slug, action, at))
        elif expires is not None and (deleted is None or expires <= deleted):
            happened.append((user, slug, "EXPIRED", expires))
        elif deleted is not None:
            happened.append((user, slug, "SEGMENT_DELETED", deleted))
    return [
        (user, slug, action, at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
        for user, slug, action, at in happened
        if began <= at < until
    ]


async def _look_at_import(stack: Stack, work: Work) -> None:
    found = await task(stack, work.imported)
    if found["status"] != "SUCCEEDED" or found["importResult"] != {"rows": MEMBERS, "added": MEMBERS}:
        stack.broken.append(f"import {work.imported} of {MEMBERS} is {found}")
    at_hand = await stack.postgres.ask(
        f"SELECT user_id FROM memberships JOIN segments ON id = segment_id WHERE slug = '{work.filled}'"
    )
    if {user for (user,) in at_hand} != set(members("i", MEMBERS)):
        stack.broken.append(f"{work.filled} has {len(at_hand)} members of {MEMBERS}")
    await _look_at_events(stack, work.filled, {("ADDED", user): 1 for user in members("i", MEMBERS)}, "IN ('ADDED')")


async def look_at_cleanup(stack: Stack, slug: str, closing: dict[tuple[str, str], int]) -> None:
    """Nobody is left in it, and every member that it had has one end."""
    left = await one(stack, f"SELECT count(*) FROM memberships JOIN segments ON id = segment_id WHERE slug = '{slug}'")
    if left:
        stack.broken.append(f"{left} memberships of {slug} are left")
    await _look_at_events(stack, slug, closing, "NOT IN ('ADDED', 'EXPIRY_CHANGED')")


async def _look_at_events(stack: Stack, slug: str, expected: dict[tuple[str, str], int], which: str) -> None:
    events = await stack.postgres.ask(
        f"""SELECT CAST(action AS text), user_id FROM membership_events JOIN segments ON id = segment_id
            WHERE slug = '{slug}' AND action {which}"""
    )
    if (found := Counter(map(tuple, events))) != expected:
        differences = [*(found - Counter(expected)).items(), *(Counter(expected) - found).items()]
        stack.broken.append(f"the events of {slug} {which} differ: {len(differences)}, {differences[:3]}")


async def _look_at_files(stack: Stack, id_: str) -> None:
    """The one file is the one that the task names; what else a worker struck at its end has left, the purge removes."""
    attempt = await one(stack, f"SELECT result ->> 'attempt' FROM tasks WHERE id = '{id_}'")
    folder, only = stack.files / "reports" / id_, [f"{attempt}.csv"]

    def names() -> list[str]:
        return sorted(path.name for path in folder.glob("*"))

    limit = time.monotonic() + TIDY_SECONDS
    while names() != only and time.monotonic() < limit:
        await asyncio.sleep(0.02)
    if names() != only:
        await command(stack, "purge")
    if names() != only:
        stack.broken.append(f"the files of task {id_} are {names()}, and it names attempt {attempt}")


async def command(stack: Stack, name: str) -> None:
    """`segmentql` with this command, by hand, to its end."""
    process = Process(len(stack.places), stack.folder, (name,), stack.worker.environ, program=stack.worker.program)
    await process.start()
    if code := await process.ended():
        stack.broken.append(f"`segmentql {name}` ended with {code}")


def now() -> datetime:
    return datetime.now(UTC)
