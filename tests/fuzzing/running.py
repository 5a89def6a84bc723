"""Sending so many cases to a server at once from several connections, and keeping account of what comes of them."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conftest import Client
from generated_values import Values, World
from graphql import GraphQLSchema
from operations import change, create

from fuzzing import bodies, documents, framing
from fuzzing.cases import Case
from fuzzing.exchanging import Connection
from resolvers.links import PATH
from schema.api import schema as api_schema

CONNECTIONS = 8
# Of ten requests so many are in good order as far as HTTP goes.
IN_ORDER = 0.78
USERS, SEGMENTS = 40, 8


@dataclass
class Finding:
    number: int
    case: Case
    wrong: str
    answered: bytes


@dataclass
class Account:
    """What came of all."""

    kinds: Counter[str] = field(default_factory=Counter)
    # By how each answer went: its status, or what there was instead.
    statuses: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    slowest_kind: str = ""
    # Nothing came in time while others were answered, but did when it was asked for alone.
    late: int = 0
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0


async def world(client: Client) -> World:
    """Something to ask for."""
    slugs, users = [f"S{n}" for n in range(SEGMENTS)], [f"u{n}" for n in range(USERS)]
    await create(client, *slugs)
    for number, user in enumerate(users):
        await change(client, user, add=slugs[number % 3 :: 2])
    members = await client.ask('{ segment(slug: "S0") { members(first: 3) { edges { cursor } } } }')
    events = await client.ask('{ user(id: "u1") { history(first: 3) { edges { cursor node { at } } } } }')
    listed = await client.ask("{ segments(first: 3) { edges { cursor } } }")
    of = {
        "members": members["segment"]["members"]["edges"],
        "history": events["user"]["history"]["edges"],
        "segments": listed["segments"]["edges"],
    }
    cursors = {name: [edge["cursor"] for edge in edges] for name, edges in of.items()}
    cursors |= {"user": cursors["history"], "segment": cursors["members"]}
    instants = [edge["node"]["at"] for edge in of["history"]]
    return World(users, slugs, ["00000000-0000-0000-0000-000000000000"], cursors, instants)


@dataclass
class Cases:
    """The same ones from the same seed, in the same world, one by one: each has a chance of its own."""

    seed: int
    world: World

    def __post_init__(self) -> None:
        self._schema: GraphQLSchema = api_schema([])._schema
        self._known = documents.known_documents(self._schema)
        self._operations = documents.operations(self._schema)

    def case(self, number: int) -> Case:
        chance = random.Random(f"{self.seed}/{number}")
        if chance.random() > IN_ORDER:
            return framing.case(chance, PATH)
        values = Values(self.world, chance)
        return bodies.Writer(self._schema, values, chance, self._known, self._operations).case()


async def run(
    client: Client, cases: Cases, requests: int, passed: Callable[[int], Any] = lambda _number: None
) -> Account:
    """Send them all; `passed` is told of each that was answered how many there are by then."""
    account, began = Account(), time.monotonic()
    numbers, senders = iter(range(requests)), Senders()
    await asyncio.gather(*(_send(client, cases, numbers, account, senders, passed) for _ in range(CONNECTIONS)))
    account.seconds = time.monotonic() - began
    return account


class Senders:
    """Lets one send while no other does."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(CONNECTIONS)
        self._alone = asyncio.Lock()

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        async with self._places:
            yield

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        async with self._alone, AsyncExitStack() as all_places:
            for _ in range(CONNECTIONS):
                await all_places.enter_async_context(self._places)
            yield


async def _send(
    client: Client,
    cases: Cases,
    numbers: Iterator[int],
    account: Account,
    senders: Senders,
    passed: Callable[[int], Any],
) -> None:
    url = client.http.base_url
    assert url.port is not None
    connection = Connection(url.host, url.port)
    for number in numbers:
        case = cases.case(number)
        async with senders.together():
            outcome = await connection.exchange(case)
        if outcome.late:
            # Another may have kept the server, or this machine, from it.
            async with senders.alone():
                outcome = await connection.exchange(case)
            account.late += not outcome.late
        account.kinds[case.kind] += 1
        account.statuses.update(outcome.statuses)
        if outcome.seconds > account.slowest:
            account.slowest, account.slowest_kind = outcome.seconds, case.kind
        if outcome.wrong is not None:
            account.findings.append(Finding(number, case, outcome.wrong, outcome.answered))
        passed(account.kinds.total())
    connection.close()


def save(findings: list[Finding], seed: int, folder: Path) -> None:
    """Each as the bytes that were sent, beside what was wrong about the answer."""
    for finding in findings:
        name, case = f"{seed}-{finding.number}", finding.case
        keep(folder, f"{name}.request", b"".join(case.sent) + case.frames)
        what = f"{case.kind}: {finding.wrong}\n".encode("utf-8", "backslashreplace")
        keep(folder, f"{name}.wrong", what + finding.answered)


def keep(folder: Path, name: str, content: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
