"""Faults of what there is too little of: connections, and room on disks."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import asyncpg

from faults import asking, crowd, work
from faults.disks import Disk, mounted
from faults.history import Attempt, Outcome
from faults.load import Load
from faults.processes import Process
from faults.row import row
from faults.stack import Stack

CLIENTS = 200
# What such a client may be told, but that it is done.
TOLD = {"OVERLOADED", "TIMEOUT", "IDEMPOTENCY_IN_PROGRESS"}
HOT = [f"hot-{number}" for number in range(8)]
HOT_SECONDS = 1.0
QUEUE = "P"


async def make_queue(stack: Stack, load: Load) -> None:
    await load.write("createSegment", {"slug": QUEUE}, {})
    for user in HOT:
        await load.change(user, ["S0"], [], load.value())


@row(
    "pool-exhausted",
    f"{CLIENTS} clients change many users, and one, of a segment that somebody holds locked; four connections a server",
    before=make_queue,
    settings={"SEGMENTQL_POOL_SIZE": "4"},
)
async def exhaust(stack: Stack, load: Load) -> None:
    for user in HOT:
        await asyncio.gather(*(load.read(server, user) for server in stack.servers))
    async with crowd.connected(stack, CLIENTS) as clients:
        async with _held(stack):
            asking_ = [asyncio.create_task(_one_slow(load, *each)) for each in enumerate(clients)]
            reads = await _read_for(stack, load, stack.random.uniform(1, 3))
        attempts = await asyncio.gather(*asking_)
    for attempt in attempts:
        if attempt.outcome is not Outcome.OK and not set(attempt.error.split()) <= TOLD:
            stack.broken.append(f"a client that waited was told {attempt.error!r}")
    if all(attempt.outcome is Outcome.OK for attempt in attempts):
        stack.broken.append("there were connections enough for everybody")
    for read, idle in reads:
        if read.outcome is not Outcome.OK or read.seconds - idle > HOT_SECONDS:
            stack.broken.append(f"a cached read took {read.seconds:.2f} s, and nothing {idle:.2f} s: {read.error!r}")


@asynccontextmanager
async def _held(stack: Stack) -> AsyncIterator[None]:
    holder = await stack.postgres.connect()
    try:
        await holder.execute(f"BEGIN; SELECT FROM segments WHERE slug = '{QUEUE}' AND deleted_at IS NULL FOR UPDATE")
        yield
    finally:
        await holder.close(timeout=5)


async def _one_slow(load: Load, number: int, client: Process) -> Attempt:
    """One attempt; what becomes of it otherwise is asked at the end."""
    value = load.value()
    ending = {"expiresAt": asking.instant(value)}
    if number % 2:
        users = [f"slow-{value}-{each}" for each in range(20)]
        write = load.begin(
            "addUsersToSegment", {"slug": QUEUE, "userIds": users} | ending, {(user, QUEUE): value for user in users}
        )
    else:
        user = f"slow-{value}"
        write = load.begin("changeUserSegments", {"userId": user, "add": [QUEUE]} | ending, {(user, QUEUE): value})
    await load.attempt(client, write)
    return write.attempts[0]


async def _read_for(stack: Stack, load: Load, seconds: float) -> list[tuple[Attempt, float]]:
    """Cached reads, and how long the same server took meanwhile to answer what needs nothing at all."""
    until, found = time.monotonic() + seconds, []
    while time.monotonic() < until:
        server = stack.somebody()
        read, idle = await asyncio.gather(load.read(server, stack.random.choice(HOT)), server.http.get("/healthz"))
        found.append((read.attempt, idle.elapsed.total_seconds()))
    return found


DISKS: dict[Path, Disk] = {}
WAL_MEGABYTES = 96


async def move_log(stack: Stack, load: Load) -> None:
    """Have PostgreSQL write its log to a disk of its own."""
    await stack.postgres.stop()
    log = stack.postgres.data / "pg_wal"
    disk = DISKS[stack.folder] = mounted(stack, stack.folder / "wal", WAL_MEGABYTES)
    for each in log.iterdir():
        shutil.move(each, disk.where)
    log.rmdir()
    log.symlink_to(disk.where)
    stack.postgres.account.take(disk.where)
    await stack.postgres.start()


RECOVERING_SECONDS = 8


@row(
    "disk-full-wal",
    "the disk with PostgreSQL's log is full: it panics, and is started again when there is room",
    before=move_log,
    postgres_options={"min_wal_size": "32MB", "max_wal_size": "48MB", "wal_recycle": "off"},
)
async def fill_log(stack: Stack, load: Load) -> None:
    disk = DISKS[stack.folder]
    disk.fill()
    try:
        # It fills what it has, and finds no room for more. At times its recovery does not end for that, and is ended.
        limit = time.monotonic() + RECOVERING_SECONDS
        while stack.postgres.runs and time.monotonic() < limit:
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
                await stack.postgres.ask("SELECT pg_switch_wal()")
            await asyncio.sleep(stack.random.uniform(0, 0.2))
        await stack.postgres.stop("immediate")
    finally:
        disk.make_room()
    await stack.postgres.start()


REPORTED = 4_000
REPORTED_BYTES = REPORTED * 40
STORED, FULL = "The file could not be stored: ", "No space left on device"


async def move_files(stack: Stack, load: Load) -> None:
    """Have files on a disk of their own, and something to report."""
    shutil.rmtree(stack.files, ignore_errors=True)
    disk = DISKS[stack.folder] = mounted(stack, stack.files, 8)
    (disk.where / "reports").mkdir(mode=0o700)
    await work.fill(load, "R", work.members("r", REPORTED))


@row(
    "disk-full-reports",
    "the disk with the files of reports is full: nothing is published, and with room again the report is right",
    before=move_files,
)
async def fill_files(stack: Stack, load: Load) -> None:
    disk, began, until = DISKS[stack.folder], datetime.fromtimestamp(0, UTC), work.now()
    disk.fill(leaving=stack.random.randrange(REPORTED_BYTES))
    id_ = await work.report(load, began, until)
    try:
        await work.until(lambda: _has_status(stack, id_, "SUCCEEDED", "FAILED"), "the report ends")
        found = await work.task(stack, id_)
        said = str(found["error"])
        if not said.startswith(STORED) or FULL not in said or found["file"] is not None:
            stack.broken.append(f"a report without room is {found}")
        if left := [path.name for path in disk.where.rglob(f"*{id_}*/*")]:
            stack.broken.append(f"a report without room has left {left}")
    finally:
        disk.make_room()
    await work.look_at_report(stack, await work.report(load, began, until), began, until)


async def _has_status(stack: Stack, id_: str, *statuses: str) -> bool:
    return (await work.task(stack, id_))["status"] in statuses


# A report sorts in memory what fits into 64 MB; of the longest ids that there may be, these are more.
LONG_IDS, LONG_ID, LONG_CHARACTER = 22_000, 128, "\N{MATHEMATICAL BOLD ITALIC SMALL U}"
SEGMENTS = ("L" * 60, "M" * 60, "N" * 60)
TEMP_MEGABYTES = 128


async def move_temporary(stack: Stack, load: Load) -> None:
    disk = DISKS[stack.folder] = mounted(stack, stack.folder / "temp", TEMP_MEGABYTES)
    stack.postgres.account.take(disk.where)
    await stack.postgres.ask(f"CREATE TABLESPACE small LOCATION '{disk.where}'")
    await stack.postgres.ask("ALTER SYSTEM SET temp_tablespaces = 'small'")
    await stack.postgres.ask("SELECT pg_reload_conf()")
    users = [each.rjust(LONG_ID, LONG_CHARACTER) for each in work.members("t", LONG_IDS)]
    for slug in SEGMENTS:
        await work.fill(load, slug, users)


@row(
    "disk-full-temp",
    "the disk that PostgreSQL sorts on is full: the report is tried again, and is right when there is room",
    before=move_temporary,
)
async def fill_temporary(stack: Stack, load: Load) -> None:
    disk = DISKS[stack.folder]
    disk.fill(leaving=stack.random.randrange(40) * 2**20)
    try:
        asked = await load.write("generateReport", {"from": "2020-01-01T00:00:00Z", "segments": list(SEGMENTS)}, {})
        id_ = asked.answers()[0]["task"]["id"]
        await work.until(lambda: _has_failed(stack, id_), "the report fails for want of room to sort")
        if (await work.task(stack, id_))["file"] is not None or any(stack.files.rglob(f"{id_}/*.csv")):
            stack.broken.append("a report that was not sorted was published")
    finally:
        disk.make_room()
    await work.until(lambda: _has_status(stack, id_, "SUCCEEDED", "FAILED"), "the report ends")
    found = await work.task(stack, id_)
    if found["status"] != "SUCCEEDED" or found["file"]["rows"] != LONG_IDS * len(SEGMENTS):
        stack.broken.append(f"a report with room again is {found}")


async def _has_failed(stack: Stack, id_: str) -> bool:
    return bool(await work.one(stack, f"SELECT failures > 0 FROM tasks WHERE id = '{id_}'"))
