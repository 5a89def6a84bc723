"""`make bench-steps`: how many steps of Python a request takes, function by function; the same on every machine.

A step is an instruction of Python's, about 11 ns of a processor. What C does in one of them, the driver's, orjson's or
the kernel's, is not seen, nor how often memory was waited for: for that there are clocks. But no other work on the
machine changes the number, so that it tells of one per cent what a clock may not tell of ten.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Annotated, Any

import typer
import uvicorn
import uvloop
from rich.console import Console
from rich.table import Table

from bench import databases
from bench.speed import works
from bench.speed.data import Data, seeded
from bench.speed.works import Work
from server import fast_protocol
from server.app import create_app
from server.settings import Settings

WORKS = {each.name: each for each in (works.MEMBERSHIPS, works.IS_IN, works.COLD, works.LATEST, works.CHANGE)}
USERS = 20_000
# Requests that are under way at once, as many rounds of them before it is counted and meanwhile.
TOGETHER, WARM_UP, ROUNDS = 32, 20, 20
# What went the short way is written at once, and has this in it if it is right.
RIGHT = b'\r\n\r\n{"data":{'
# Code of no module: what an operation was compiled to.
COMPILED = "compiled"


@dataclass(frozen=True, slots=True)
class Steps:
    """Of one request, on average."""

    total: float
    # By function, as `module.function`.
    functions: dict[str, float]


def count(data: Data, work: Work) -> Steps:
    """Answer requests within this process, on connections that lead nowhere, and count."""
    return uvloop.run(_count(data, work))


async def _count(data: Data, work: Work) -> Steps:
    with TemporaryDirectory() as files:
        settings = Settings(
            database_url=data.database.url.render_as_string(hide_password=False),
            redis_url=data.database.redis_url,
            data_dir=Path(files),
            port=0,
            serve_tasks=0,
            rate_limit=0,
            log_level="WARNING",
        )
        http = fast_protocol.bounded(settings.max_header_bytes)
        config = uvicorn.Config(create_app(settings), http=http, log_config=None, access_log=False, lifespan="on")
        server = uvicorn.Server(config)
        config.load()
        server.lifespan = config.lifespan_class(config)
        await server.lifespan.startup()
        try:
            return await _answer(server, [_request(body) for body in work.bodies(data, works.turn())], work)
        finally:
            await server.lifespan.shutdown()


async def _answer(server: uvicorn.Server, requests: Sequence[bytes], work: Work) -> Steps:
    made: Any = server.config.http_protocol_class
    connections = []
    for _ in range(TOGETHER):
        connection = made(config=server.config, server_state=server.server_state, app_state=server.lifespan.state)
        connection.connection_made(_Connection())
        connections.append(connection)
    # What may be asked again is counted when its text is kept: as it is nearly always.
    rounds = [requests[first : first + TOGETHER] for first in range(0, TOGETHER * (WARM_UP + ROUNDS), TOGETHER)]
    before, counted = rounds[:WARM_UP], rounds[WARM_UP:]
    for some in (*before, *(counted * 3 if work.repeats else ())):
        await _round(connections, some, b"HTTP/1.1 200")
    counter: Counter[str] = Counter()
    sys.settrace(_tracing(counter))
    try:
        for some in counted:
            await _round(connections, some, RIGHT)
    finally:
        sys.settrace(None)
    number = TOGETHER * ROUNDS
    ours = {name: steps / number for name, steps in counter.most_common() if not name.startswith(f"{__name__}.")}
    return Steps(sum(ours.values()), ours)


async def _round(connections: Sequence[Any], requests: Sequence[bytes], expected: bytes) -> None:
    for connection, request in zip(connections, requests, strict=True):
        connection.transport.answered = asyncio.get_running_loop().create_future()
        connection.data_received(request)
    for connection in connections:
        answer = await connection.transport.answered
        if expected not in answer or b'"userErrors":[{' in answer:
            raise RuntimeError(f"that was to be answered: {answer!r}")


class _Connection(asyncio.Transport):
    """Takes what is written for an answer."""

    answered: "asyncio.Future[bytes]"

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.answered.done():
            self.answered.set_result(bytes(data))

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}.get(name, default)

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        self.answered.set_exception(ConnectionError("the connection was cut off"))

    close = abort


def _request(body: str) -> bytes:
    head = (
        f"POST /graphql HTTP/1.1\r\nHost: 127.0.0.1:2\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    return f"{head}\r\n\r\n{body}".encode()


def _tracing(counter: Counter[str]) -> Any:
    names: dict[Any, str] = {}

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if event == "opcode":
            counter[names[frame.f_code]] += 1
        elif event == "call":
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            if frame.f_code not in names:
                names[frame.f_code] = f"{frame.f_globals.get('__name__', COMPILED)}.{frame.f_code.co_qualname}"
        return trace

    return trace


def main(
    work: Annotated[str, typer.Option(help=f"What is asked: {', '.join(WORKS)}.")] = works.MEMBERSHIPS.name,
    top: Annotated[int, typer.Option(min=1, help="How many functions are shown.")] = 40,
) -> None:
    """Print the steps of a request, of the functions that take most first."""
    if work not in WORKS:
        raise typer.BadParameter(f"There are {', '.join(WORKS)}.", param_hint="--work")
    with ExitStack() as ending:
        cluster = ending.enter_context(databases.running())
        data = ending.enter_context(seeded(cluster, "steps", USERS, history=True))
        steps = count(data, WORKS[work])
    table = Table("function", "steps", title=f"{work}: {steps.total:,.0f} steps of Python for a request")
    for name, number in islice(steps.functions.items(), top):
        table.add_row(name, f"{number:,.1f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
