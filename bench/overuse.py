"""Reads from one address at many times its limit, from a process of their own: what became of each."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Annotated

import typer

from bench import load
from bench.client import Client
from bench.wire import Wire

CONNECTIONS = 16


@dataclass(slots=True)
class Overuse:
    """What a process has measured; whole when its block has ended."""

    # Of each the status, and the seconds until it was there.
    answers: list[tuple[int, float]] = field(default_factory=list)

    def seconds(self, status: HTTPStatus) -> list[float]:
        return [seconds for each, seconds in self.answers if each == status]


@contextmanager
def going_on(client: Client, *, rate: float, address: str, path: Path) -> Iterator[Overuse]:
    """Ask that many times a second, for as long as the block lasts."""
    words = [client.host, str(client.port), str(rate), address, str(path)]
    overuse = Overuse()
    with load.asking("bench.overuse", *words):
        yield overuse
    overuse.answers = [(status, seconds) for status, seconds in json.loads(path.read_text())]


async def _ask(host: str, port: int, rate: float, address: str) -> list[tuple[int, float]]:
    ended, answers, parent = asyncio.Event(), list[tuple[int, float]](), os.getppid()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)

    async def one(wire: Wire, number: int) -> None:
        # One after the other, and not all at once.
        due = time.monotonic() + number / rate
        while not ended.is_set() and os.getppid() == parent:
            due = max(due + CONNECTIONS / rate, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            began = time.monotonic()
            status, _ = await wire.exchange('{ user(id: "1") { segments { slug } } }')
            answers.append((status, time.monotonic() - began))

    async with AsyncExitStack() as ending, asyncio.TaskGroup() as requests:
        wires = [await ending.enter_async_context(Wire(host, port, address)) for _ in range(CONNECTIONS)]
        for number, wire in enumerate(wires):
            requests.create_task(one(wire, number))
    return answers


def main(
    host: str,
    port: int,
    rate: float,
    address: str,
    path: Annotated[Path, typer.Argument(help="Where it goes.")],
) -> None:
    path.write_text(json.dumps(asyncio.run(_ask(host, port, rate, address))))


if __name__ == "__main__":
    typer.run(main)
