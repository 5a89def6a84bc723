"""The guide for batch clients: its programs do what it says, through everything that can happen on the way."""

import asyncio
import json
import re
import subprocess
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Client
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from test_audits import FOLDER, require_node

from resolvers.errors import UserErrorCode

GUIDE = (ROOT / "docs" / "batch-clients.md").read_text()
EXAMPLES = ROOT / "docs" / "examples"
OPTIONS = GUIDE.partition("npx tsc batch.ts ")[2].partition("\n")[0].split()
# Of everything else than a refusal.
CODES = {
    "GRAPHQL_PARSE_FAILED",
    "GRAPHQL_VALIDATION_FAILED",
    "BAD_USER_INPUT",
    "UNAUTHENTICATED",
    "FORBIDDEN",
    "RATE_LIMITED",
    "LIMIT_EXCEEDED",
    "OVERLOADED",
    "TIMEOUT",
    "INTERNAL_SERVER_ERROR",
}
# Starts a program whose waits are a hundred times shorter.
HASTE = {
    "batch.py": "import runpy, sys, time; sleep = time.sleep; time.sleep = lambda seconds: sleep(seconds / 100); "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')",
    "batch.js": "const wait = setTimeout; globalThis.setTimeout = (then, ms) => wait(then, ms / 100);"
    "await import(process.argv[1]);",
}

CREATE = 'mutation ($slug: String!) { createSegment(input: {slug: $slug}, idempotencyKey: "create-it") { replayed } }'
HISTORY = "query ($ids: [ID!]!) { users(ids: $ids) { id segments { slug } history { nodes { action } } } }"
# As people save files: with a mark in front, a line of Windows, an empty line, and no end to the last.
FILE = "\N{ZERO WIDTH NO-BREAK SPACE}1000\r\nü 3\n\nuser-2\n=4\n5"
USERS = ["1000", "ü 3", "user-2", "=4", "5"]
TOTALS = {"chunks": 3, "added": 5, "updated": 0, "unchanged": 0}

# What a proxy does with a request besides passing it on: it loses the server's answer.
LOST = b""


def response(status: str, body: str, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body.encode())}", "Connection: close", "", body]
    return "\r\n".join(lines).encode()


def failure(code: str) -> str:
    return json.dumps({"errors": [{"message": "Not now.", "extensions": {"code": code}}]})


def refusal(code: str) -> str:
    errors = [{"code": code, "path": ["idempotencyKey"], "message": "Not now."}]
    counts = {"added": 0, "updated": 0, "unchanged": 0, "replayed": False}
    return json.dumps({"data": {"addUsersToSegment": {**counts, "userErrors": errors}}})


BAD_GATEWAY = response("502 Bad Gateway", "<h1>Bad gateway</h1>", "Content-Type: text/html")
OVERLOADED = response("503 Service Unavailable", failure("OVERLOADED"))
TIMEOUT = response("200 OK", failure("TIMEOUT"))
RATE_LIMITED = response("429 Too Many Requests", failure("RATE_LIMITED"), "Retry-After: 30")
IN_PROGRESS = response("200 OK", refusal("IDEMPOTENCY_IN_PROGRESS"))


@dataclass(frozen=True)
class Call:
    key: str
    at: float


@dataclass(frozen=True)
class Ran:
    exit: int
    said: str
    complained: str

    @property
    def totals(self) -> Any:
        assert self.exit == 0, self.complained
        return json.loads(self.said)


@dataclass(frozen=True)
class Program:
    command: list[str]

    async def run(self, *arguments: str) -> Ran:
        process = await asyncio.create_subprocess_exec(*self.command, *arguments, stdout=PIPE, stderr=PIPE)
        said, complained = await process.communicate()
        assert process.returncode is not None
        return Ran(process.returncode, said.decode(), complained.decode())

    @property
    def hasty(self) -> "Program":
        *interpreter, path = self.command
        option = ["-c"] if path.endswith(".py") else ["--input-type=module", "-e"]
        return Program([*interpreter, *option, HASTE[Path(path).name], path])


@pytest.fixture(scope="module", params=["batch.py", "batch.ts"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Program:
    source: Path = EXAMPLES / request.param
    if source.suffix == ".py":
        return Program([sys.executable, "-W", "error::DeprecationWarning:gql.client", str(source)])
    require_node()
    folder = tmp_path_factory.mktemp("compiled")
    modules = FOLDER / "node_modules"
    places = ["--typeRoots", str(modules / "@types"), "--outDir", str(folder)]
    compiler = [str(modules / ".bin" / "tsc"), str(source), *OPTIONS, *places]
    compiled = subprocess.run(compiler, capture_output=True, text=True, check=False)
    assert (compiled.returncode, compiled.stdout, compiled.stderr) == (0, "", "")
    (folder / "package.json").write_text('{"type": "module"}')
    return Program(["node", str(folder / "batch.js")])


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "users.txt"
    path.write_bytes(FILE.encode())
    return str(path)


async def test_whatever_happens_on_the_way_happens_once(
    client: Client, engine: AsyncEngine, program: Program, file: str
) -> None:
    await client.ask(CREATE, slug="LISTED")
    faults = [LOST, TIMEOUT, None, RATE_LIMITED, IN_PROGRESS, None, OVERLOADED, BAD_GATEWAY, None]
    async with before(client, faults) as (url, calls):
        totals = (await program.hasty.run(url, "LISTED", file, "job-2026-11-23", "2")).totals
    assert totals == {**TOTALS, "replayed": 1}
    assert [call.key for call in calls] == [f"job-2026-11-23/{number}" for number in (1, 1, 1, 2, 2, 2, 3, 3, 3)]
    limited, after = calls[3:5]
    assert after.at - limited.at > 29 / 100  # as it was told to wait, in its haste
    found = (await client.ask(HISTORY, ids=[*USERS, "6"]))["users"]
    assert [(user["id"], user["segments"], user["history"]["nodes"]) for user in found] == [
        *((user, [{"slug": "LISTED"}], [{"action": "ADDED"}]) for user in USERS),
        ("6", [], []),
    ]

    again = await program.run(f"{client.http.base_url}/graphql", "LISTED", file, "job-2026-11-23", "2")
    assert again.totals == {**TOTALS, "replayed": 3}
    assert await rows(engine, "memberships") == await rows(engine, "membership_events") == len(USERS)


async def test_a_refusal_ends_it_with_the_reason(
    client: Client, engine: AsyncEngine, program: Program, tmp_path: Path
) -> None:
    url = f"{client.http.base_url}/graphql"
    await client.ask(CREATE, slug="LISTED")
    file = tmp_path / "users.txt"
    file.write_text("1\n2\n3\n4\a\n")
    wrong = await program.run(url, "LISTED", str(file), "job-2026-11-23", "2")
    assert (wrong.exit, wrong.said) == (1, "")
    assert wrong.complained.splitlines() == [
        "INVALID input.userIds.1: A user id has 1 to 128 characters, none of them a control character.",
        "Stopped at job-2026-11-23/2: asking again would not help. The chunks before it are done.",
    ]
    assert await rows(engine, "memberships") == 2
    file.write_text("1\n2\n3\n4\n")
    # Mended, it goes on: the refused chunk has not used its key up.
    mended = await program.run(url, "LISTED", str(file), "job-2026-11-23", "2")
    assert mended.totals == {"chunks": 2, "added": 4, "updated": 0, "unchanged": 0, "replayed": 1}
    # Other chunks would be other intentions under the same keys.
    reused = await program.run(url, "LISTED", str(file), "job-2026-11-23", "3")
    assert (reused.exit, reused.said) == (1, "")
    assert reused.complained.startswith("IDEMPOTENCY_KEY_REUSED idempotencyKey: ")
    assert await rows(engine, "memberships") == 4


async def test_it_gives_up_after_a_while(client: Client, program: Program, file: str) -> None:
    async with before(client, [BAD_GATEWAY] * 20) as (url, calls):
        ran = await program.hasty.run(url, "LISTED", file, "job-2026-11-23")
    assert (ran.exit, ran.said) == (1, "")
    assert [call.key for call in calls] == ["job-2026-11-23/1"] * 10
    assert ran.complained.count("HTTP_502") == 10
    assert "Given up at job-2026-11-23/1 after 10 attempts." in ran.complained


def test_the_guide_shows_the_programs_as_they_are() -> None:
    for language, name in (("python", "batch.py"), ("ts", "batch.ts")):
        shown = re.findall(f"^```{language}\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
        assert shown == [(EXAMPLES / name).read_text()]


def test_the_guide_says_of_every_code_what_to_do() -> None:
    assert set(re.findall(r"^\| `([A-Z_]+)` \|", GUIDE, re.MULTILINE)) == CODES | set(UserErrorCode)


@asynccontextmanager
async def before(client: Client, faults: Iterable[bytes | None]) -> AsyncIterator[tuple[str, list[Call]]]:
    """A proxy before the server: its URL, and what comes to it. Where the fault is None it passes on, as at the end."""
    fates, calls = iter(faults), list[Call]()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        assert length is not None
        body = await reader.readexactly(int(length[1]))
        calls.append(Call(json.loads(body)["variables"]["key"], time.monotonic()))
        answer = next(fates, None)
        if answer is None or answer is LOST:
            passed = await client.http.post("/graphql", content=body, headers={"Content-Type": "application/json"})
            assert passed.json()["data"]["addUsersToSegment"]["userErrors"] == []
            answer = answer if answer is LOST else response("200 OK", passed.text)
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(relay, "127.0.0.1", 0) as proxy:
        yield f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}/graphql", calls


async def rows(engine: AsyncEngine, table: str) -> int:
    async with engine.connect() as conn:
        count: int = (await conn.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one()
    return count
