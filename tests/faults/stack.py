"""The whole service: PostgreSQL, Valkey, three server processes and a worker, and what is asked of them."""

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from breaking import Valkey
from clusters import Cluster
from databases import migrated

from faults.history import History
from faults.processes import PROGRAM, SERVE, WORK, Place, Process
from server import embedded

SERVERS = 3
SETTINGS = {
    "SEGMENTQL_RATE_LIMIT": "0",
    "SEGMENTQL_SERVE_TASKS": "0",
    "SEGMENTQL_LOG_FORMAT": "json",
}


@dataclass
class Stack:
    folder: Path
    postgres: Cluster
    valkey: Valkey
    # The servers', the worker's, and those of processes that a fault has added.
    places: list[Place]
    servers: list[Process]
    worker: Process
    random: random.Random
    ending: AsyncExitStack
    # Processes that a fault has added.
    added: list[Process] = field(default_factory=list)
    history: History = field(default_factory=History)
    # How many faults were injected.
    faults: int = 0
    # What a fault has seen that may not be.
    broken: list[str] = field(default_factory=list)

    @property
    def files(self) -> Path:
        return self.folder / "files"

    def somebody(self) -> Process:
        return self.random.choice(self.servers)

    @property
    def open_connections(self) -> int:
        return sum(place.postgres.open for place in self.places)

    async def another(self, command: Sequence[str]) -> Process:
        """One more process, with a way of its own, for as long as everything else."""
        number = len(self.places)
        place = Place(number, self.folder, self.postgres, self.valkey)
        await place.enter(self.ending)
        process = Process(number, self.folder, command, self.worker.environ | place.urls, program=self.worker.program)
        self.ending.push_async_callback(process.end)
        self.places.append(place)
        self.added.append(process)
        await process.start()
        return process


@asynccontextmanager
async def running(
    folder: Path,
    *,
    seed: int,
    template: Path,
    settings: Mapping[str, str] | None = None,
    postgres_options: Mapping[str, str] | None = None,
    valkey_options: Sequence[str] = (),
    planted: str | None = None,
) -> AsyncIterator[Stack]:
    """Start everything. `template` is a cluster at rest with our tables; `planted` is a bug that the servers have."""
    program = PROGRAM if planted is None else (sys.executable, "-m", "faults.planted", planted)
    environ = SETTINGS | {"SEGMENTQL_FILES": str(folder / "files")} | dict(settings or {})
    async with AsyncExitStack() as ending:
        postgres = Cluster(folder / "postgres", dict(postgres_options or {}), prepared=template)
        valkey = Valkey(folder)
        ending.push_async_callback(postgres.end)
        await postgres.start()
        ending.push_async_callback(valkey.end)
        await valkey.start(*valkey_options)
        places = [Place(number, folder, postgres, valkey) for number in range(SERVERS + 1)]
        for place in places:
            await place.enter(ending)
        servers = [
            Process(number, folder, SERVE, environ | places[number].urls, program=program) for number in range(SERVERS)
        ]
        worker = Process(SERVERS, folder, WORK, environ | places[SERVERS].urls, program=program)
        for process in (*servers, worker):
            ending.push_async_callback(process.end)
        await asyncio.gather(*(process.start() for process in (*servers, worker)))
        yield Stack(folder, postgres, valkey, places, servers, worker, random.Random(seed), ending)


async def template(folder: Path) -> Path:
    """A cluster at rest with our tables and partitions, which is copied in no time."""
    with embedded.running(folder, durable=False) as running:
        await migrated(running.database_url)
    return folder / "postgres"
