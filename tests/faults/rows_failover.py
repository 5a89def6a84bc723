"""A PostgreSQL whose standby takes its place, while it may still be there and answer."""

import asyncio
import signal
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
from clusters import Cluster
from relays import Relay

from faults import asking
from faults.history import Outcome
from faults.load import SLUGS, Load
from faults.processes import Process
from faults.row import row
from faults.stack import Stack
from server.embedded import NAME

# Until when nobody is connected to it any more. Who was just committing waits for its standby, whoever is still there.
LEFT_SECONDS = 5
USERS = """SELECT query FROM pg_stat_activity
           WHERE application_name = 'segmentql' AND wait_event IS DISTINCT FROM 'SyncRep'"""
# How long after a promotion it is looked at closely; nobody needs longer to notice it.
LOOKING_SECONDS = 3


@dataclass
class Pair:
    """Of two servers the one that follows, and each process's ways to both."""

    standby: Cluster
    ways: dict[int, dict[Path, Relay]] = field(default_factory=dict)
    # Whether the one that follows does so: after a failover it is the server that was the primary.
    follows: bool = True
    # Those who look whether every process has left it as soon as one of them has.
    looking: asyncio.Future[list[None]] | None = None


PAIRS: dict[Path, Pair] = {}


async def add_standby(stack: Stack, load: Load) -> None:
    """Make one, and have every process know of both."""
    standby = await stack.postgres.clone_as_standby(stack.folder / "standby")
    stack.ending.push_async_callback(standby.end)
    pair = PAIRS[stack.folder] = Pair(standby)
    processes = (*stack.servers, stack.worker)
    for place, process in zip(stack.places, processes, strict=True):
        folder = place.folder / "standby"
        folder.mkdir()
        relay = Relay(folder / standby.socket.name, standby.socket)
        await stack.ending.enter_async_context(relay.running())
        pair.ways[process.number] = {stack.postgres.folder: place.postgres, standby.folder: relay}
    await asyncio.gather(*(_tell(process, pair.ways[process.number].values()) for process in processes))


async def _tell(process: Process, ways: Collection[Relay]) -> None:
    hosts = "&".join(f"host={way.socket.parent}:{way.socket.suffix[1:]}" for way in ways)
    process.environ["SEGMENTQL_DATABASE_URL"] = f"postgresql+asyncpg://{NAME}@/{NAME}?{hosts}"
    process.send(signal.SIGTERM)
    await process.ended()
    await process.start()


async def stop_the_past(stack: Stack, load: Load) -> None:
    await _settled(stack, PAIRS[stack.folder])
    await _gone(PAIRS[stack.folder].standby)


@row(
    "failover",
    "the synchronous standby is promoted: the primary was killed, frozen and comes back, or was made read-only",
    before=add_standby,
    after=stop_the_past,
)
async def fail_over(stack: Stack, load: Load) -> None:
    pair = PAIRS[stack.folder]
    if not pair.follows:
        await _settled(stack, pair)
        await _rejoin(stack, pair)
    old, new = stack.postgres, pair.standby
    how = stack.random.choice(["killed", "frozen", "read-only"])
    if how == "killed":
        await old.stop("kill")
    elif how == "frozen":
        old.freeze()
    else:
        await old.demote_read_only(keep_connections=stack.random.random() < 0.5)
    await asyncio.sleep(stack.random.uniform(0, 1))
    pair.looking = asyncio.gather(*(_change_and_read(stack, load, server) for server in stack.servers))
    await new.promote()
    if how == "frozen":
        old.thaw()
    stack.postgres, pair.standby, pair.follows = new, old, False
    for number, ways in pair.ways.items():
        stack.places[number].postgres = ways[new.folder]


async def _change_and_read(stack: Stack, load: Load, server: Process) -> None:
    """One change after the other by this process; what it acknowledges everybody has to see."""
    user, until = f"moved-{server.number}", time.monotonic() + LOOKING_SECONDS
    while time.monotonic() < until:
        value = load.value()
        input = {"userId": user, "add": SLUGS[:1], "expiresAt": asking.instant(value)}
        write = load.begin("changeUserSegments", input, {(user, SLUGS[0]): value})
        await load.attempt(server, write)
        if write.outcome is Outcome.OK:
            latest = stack.random.random() < 0.5
            await asyncio.gather(*(load.read(each, user, latest=latest) for each in stack.servers))
        await asyncio.sleep(0.02)


async def _gone(cluster: Cluster) -> None:
    if cluster.runs:
        await cluster.stop("kill")


async def _rejoin(stack: Stack, pair: Pair) -> None:
    """It forgets what it was, and follows."""
    await _gone(pair.standby)
    await pair.standby.follow(stack.postgres)
    pair.follows = True


async def _settled(stack: Stack, pair: Pair) -> None:
    """Nobody stays with a server that is of the past."""
    if pair.looking is not None:
        await pair.looking
    if not pair.standby.runs:
        return
    users: list[asyncpg.Record] = []
    for _ in range(LEFT_SECONDS * 20):
        users = await pair.standby.ask(USERS)
        if not users:
            return
        await asyncio.sleep(0.05)
    stack.broken.append(f"after {LEFT_SECONDS} s {len(users)} are still connected to the primary of before")
