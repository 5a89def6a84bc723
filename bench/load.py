"""Steady reads of random users, from a process of their own: how long each took, counted from when it was due."""

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Annotated

import typer

from bench.client import Client
from bench.seeds import user_id
from bench.wire import Wire

# Enough that a slow answer does not hold up the next request.
CONNECTIONS = 32


@dataclass(slots=True)
class Load:
    """What a process has measured; whole when its block has ended."""

    # When each was due, by the clock that all processes share, and the seconds until it was answered.
    reads: list[tuple[float, float]] = field(default_factory=list)

    def between(self, began: float, ended: float) -> list[float]:
        return [seconds for due, seconds in self.reads if began <= due < ended]


@contextmanager
def reading(client: Client, *, rate: float, users: int, path: Path, address: str | None = None) -> Iterator[Load]:
    """Read at that many a second, for as long as the block lasts; as if from that address, where that is believed."""
    words = [client.host, str(client.port), str(rate), str(users), str(path)]
    words += [address] if address else []
    load = Load()
    with asking("bench.load", *words):
        yield load
    load.reads = [(due, seconds) for due, seconds in json.loads(path.read_text())]


@contextmanager
def asking(program: str, *words: str) -> Iterator[None]:
    """A program that asks for as long as the block lasts, and writes what it has seen when it is told to end."""
    with Popen([sys.executable, "-m", program, *words], cwd=Path(__file__).parent.parent) as process:
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait() == 0


async def _read(host: str, port: int, rate: float, users: int, address: str | None) -> list[tuple[float, float]]:
    ended, reads, parent = asyncio.Event(), list[tuple[float, float]](), os.getppid()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with AsyncExitStack() as ending:
        free: asyncio.Queue[Wire] = asyncio.Queue()
        for _ in range(CONNECTIONS):
            free.put_nowait(await ending.enter_async_context(Wire(host, port, address)))

        async def one(due: float) -> None:
            wire = await free.get()
            await wire.ask("query ($id: ID!) { user(id: $id) { segments { slug } } }", {"id": _anybody(users)})
            reads.append((due, time.monotonic() - due))
            free.put_nowait(wire)

        async with asyncio.TaskGroup() as requests:
            due = time.monotonic()
            # A parent that was killed can tell us nothing.
            while not ended.is_set() and os.getppid() == parent:
                due += 1 / rate
                await asyncio.sleep(due - time.monotonic())
                requests.create_task(one(due))
    return reads


def _anybody(users: int) -> str:
    return user_id(random.randrange(users))


def main(
    host: str,
    port: int,
    rate: float,
    users: int,
    path: Annotated[Path, typer.Argument(help="Where it goes.")],
    address: Annotated[str | None, typer.Argument(help="Where it comes from.")] = None,
) -> None:
    path.write_text(json.dumps(asyncio.run(_read(host, port, rate, users, address))))


if __name__ == "__main__":
    typer.run(main)
