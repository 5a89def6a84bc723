"""How a process leaves: what it accepted is answered, and while others take over nobody notices."""

import asyncio
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path

import forking
import httpx
import pytest
import secrets_in_logs
from balancer import Balancer, Connection, connect, ends

from server.embedded import Servers

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[1]
BODY = b'{"query": "{ user(id: 7) { segments { slug } } }"}'
REQUEST = (
    b"POST /graphql HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    % (len(BODY), BODY)
)
ANSWER: dict[str, dict[str, dict[str, list[str]]]] = {"data": {"user": {"segments": []}}}
CLIENTS = 20
PAUSE_SECONDS = 0.02


@dataclass
class Load:
    """Clients that ask one thing after the other, half of them over connections that they keep."""

    port: int
    answers: int = 0
    # What was sent and not answered.
    lost: list[str] = field(default_factory=list)
    refused: int = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        clients = [asyncio.create_task(self._ask(keeps=number % 2 == 0)) for number in range(CLIENTS)]
        try:
            yield
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)

    async def _ask(self, *, keeps: bool) -> None:
        """Until nobody listens any more."""
        while True:
            try:
                connection = await connect(self.port)
            except OSError:
                self.refused += 1
                return
            with closing(connection):
                try:
                    while not ends(await self._ask_once(connection)) and keeps:
                        await asyncio.sleep(PAUSE_SECONDS)
                except (OSError, EOFError) as error:
                    self.lost.append(repr(error))
                    return
            await asyncio.sleep(PAUSE_SECONDS)

    async def _ask_once(self, connection: Connection) -> bytes:
        head, body = await connection.ask(REQUEST)
        if b" 200 " not in head or json.loads(body) != ANSWER:
            self.lost.append(f"{head!r} {body!r}")
        self.answers += 1
        return head


@dataclass
class Process:
    process: subprocess.Popen[bytes] | forking.Command
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def ended(self) -> int:
        assert await until(lambda: self.process.poll() is not None, 20)
        return self.process.wait(1)


Start = Callable[..., Process]


@pytest.fixture
def start(servers: Servers, prepared_url: str) -> Iterator[Start]:
    """Start `segmentql serve`; it may not serve yet when this returns."""
    place, ending, numbers = Path(tempfile.mkdtemp(prefix="leaving-")), ExitStack(), itertools.count()

    def starting(*arguments: str, **settings: str) -> Process:
        folder = place / str(next(numbers))
        folder.mkdir()
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SEGMENTQL_")} | {
            "PYTHONPATH": str(ROOT),
            "SEGMENTQL_DATABASE_URL": prepared_url,
            "SEGMENTQL_REDIS_URL": servers.redis_url,
            "SEGMENTQL_SERVE_TASKS": "0",
            "SEGMENTQL_PORT": "0",
            "SEGMENTQL_LOG_LEVEL": "WARNING",
            **settings,
        }
        stdout, stderr = folder / "stdout", folder / "stderr"
        with stdout.open("w") as out, stderr.open("w") as err:
            process: subprocess.Popen[bytes] | forking.Command
            if arguments:
                command = [sys.executable, "-m", "server", "serve", *arguments]
                process = subprocess.Popen(command, cwd=folder, env=environ, stdout=out, stderr=err)
            else:
                process = forking.Command(["serve"], cwd=folder, env=environ, stdout=out, stderr=err)
        ending.enter_context(process)
        ending.callback(process.kill)
        ending.callback(secrets_in_logs.search_file, stderr)
        end = time.monotonic() + 30
        while (found := re.match(r"SegmentQL serves on http://127.0.0.1:(\d+)/", stdout.read_text())) is None:
            assert process.poll() is None, stderr.read_text()
            assert time.monotonic() < end
            time.sleep(0.02)
        return Process(process, int(found[1]), stderr)

    with ending:
        yield starting
    shutil.rmtree(place)


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")])
async def test_nothing_that_was_accepted_is_lost_when_a_busy_process_is_told_to_stop(
    start: Start, arguments: tuple[str, ...]
) -> None:
    process = start(*arguments)
    load = Load(process.port)
    async with load.running():
        assert await until(lambda: load.answers > 10 * CLIENTS)
        if arguments:
            await one_leaves(process, load)
        process.process.send_signal(signal.SIGTERM)
        assert await process.ended() == 0
        assert await until(lambda: load.refused == CLIENTS or bool(load.lost))
    assert load.lost == []
    assert "Traceback" not in process.log.read_text()


async def one_leaves(process: Process, load: Load) -> None:
    """Of several on one socket: who comes then, and while it is being replaced, is the others'."""
    os.kill(workers_of(process.process.pid)[0], signal.SIGTERM)
    assert await until(lambda: "is replaced" in process.log.read_text())
    before = load.answers
    for _ in range(10):
        async with asyncio.timeout(5):
            with closing(await connect(process.port)) as connection:
                assert (await connection.ask(REQUEST))[0].startswith(b"HTTP/1.1 200 ")
    assert await until(lambda: load.answers > before + 10 * CLIENTS)
    assert (load.lost, load.refused) == ([], 0)


def workers_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(each) for each in children if b"spawn_main" in Path(f"/proc/{each}/cmdline").read_bytes()]


async def test_nobody_notices_when_processes_behind_a_balancer_are_replaced(start: Start) -> None:
    def another() -> Process:
        return start(SEGMENTQL_DRAIN_SECONDS="1")

    async with Balancer().running() as balancer:
        old = [another(), another()]
        for process in old:
            await balancer.add(process.port)
        load = Load(balancer.port)
        async with load.running():
            for process in old:
                await balancer.add(another().port)
                before = load.answers
                process.process.send_signal(signal.SIGTERM)
                assert await process.ended() == 0
                assert load.answers - before > CLIENTS
        assert load.lost == []
        assert load.refused == 0


async def test_a_process_that_drains_says_so_and_serves_on(start: Start) -> None:
    process = start(SEGMENTQL_DRAIN_SECONDS="60")
    async with httpx.AsyncClient(base_url=process.url) as http:
        assert (await http.get("/readyz")).status_code == 200
        process.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            while (asked := await http.get("/readyz")).status_code == 200:
                await asyncio.sleep(0.02)
        report = asked.json()
        assert report["problems"] == ["This process was told to stop: it finishes what it has, and wants nothing more."]
        assert (await http.get("/healthz")).status_code == 200
        answered = await http.post("/graphql", content=BODY, headers={"Content-Type": "application/json"})
        assert (answered.status_code, answered.json()) == (200, ANSWER)
        assert answered.headers["Connection"] == "close"
        # A service manager tells every process of a service, and the one that started it does, too.
        process.process.send_signal(signal.SIGTERM)
        assert (await http.get("/healthz")).status_code == 200
        await asyncio.sleep(1.1)  # from here on it is a second signal, and not the echo of the first
        process.process.send_signal(signal.SIGTERM)
        assert await process.ended() == 0


async def test_ctrl_c_does_not_drain(start: Start) -> None:
    process = start(SEGMENTQL_DRAIN_SECONDS="60")
    async with httpx.AsyncClient(base_url=process.url) as http:
        assert (await http.get("/healthz")).status_code == 200
    process.process.send_signal(signal.SIGINT)
    assert await process.ended() == 0


async def test_a_request_that_is_just_arriving_is_answered(start: Start) -> None:
    """Uvicorn closes what has no request, and one whose headers are not complete is none to it."""
    process = start()
    kept = await connect(process.port)
    assert (await kept.ask(REQUEST))[1] == json.dumps(ANSWER, separators=(",", ":")).encode()
    kept.writer.write(REQUEST[:40])
    await asyncio.sleep(0.1)
    process.process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.7)
    head, body = await kept.ask(REQUEST[40:])
    assert (json.loads(body), ends(head)) == (ANSWER, True)
    kept.close()
    assert await process.ended() == 0


async def test_it_is_answered_too_where_others_took_both_ways_before(start: Start) -> None:
    process = start()
    kept = await connect(process.port)
    assert (await kept.ask(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"))[0].startswith(b"HTTP/1.1 200 ")
    for _ in range(3):
        assert json.loads((await kept.ask(REQUEST))[1]) == ANSWER
    kept.writer.write(REQUEST[:40])
    await asyncio.sleep(0.1)
    process.process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.7)
    head, body = await kept.ask(REQUEST[40:])
    assert (json.loads(body), ends(head)) == (ANSWER, True)
    kept.close()
    assert await process.ended() == 0


async def until(true: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not (so := true()) and time.monotonic() < end:
        await asyncio.sleep(0.02)
    return so
