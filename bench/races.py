"""Whether bulk changes of the same users, in opposite orders, and single ones between them do without any error."""

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from bench import databases, figures, processes, seeds
from bench.client import CHANGE, ERRORS, Client, key
from bench.databases import Database
from bench.figures import Json, Results, middle, percentile, said
from bench.wire import Wire

SLUGS = ("S1", "S2")
# Those who change single users, at each of the two processes.
SINGLES = 2
# Half of those are about these few: then changes of one user meet, too.
OFTEN = 20
# As many as one request may have (server/settings.py).
CHANGES = 10_000
# Many answers may be wrong in the same way.
SHOWN = 10
ADD = f"""mutation ($input: AddUsersToSegmentInput!, $key: String!) {{
  addUsersToSegment(input: $input, idempotencyKey: $key) {{ added unchanged {ERRORS} }} }}"""
REMOVE = f"""mutation ($input: RemoveUsersFromSegmentInput!, $key: String!) {{
  removeUsersFromSegment(input: $input, idempotencyKey: $key) {{ removed unchanged {ERRORS} }} }}"""
MANY = f"""mutation ($input: ChangeMembershipsInput!, $key: String!) {{
  changeMemberships(input: $input, idempotencyKey: $key) {{ added removed {ERRORS} }} }}"""


@dataclass(slots=True)
class Asked:
    """Seconds that changes took, and what came back instead of success."""

    lists: list[float] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    singles: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    async def ask(self, wire: Wire, query: str, input: dict[str, Any], seconds: list[float]) -> None:
        began = time.perf_counter()
        try:
            (payload,) = (await wire.ask(query, {"input": input, "key": key()})).values()
        except RuntimeError as error:
            self.errors.append(f"after {time.perf_counter() - began:.1f} s: {error}")
        else:
            if payload["userErrors"]:
                self.errors.append(str(payload["userErrors"]))
        seconds.append(time.perf_counter() - began)


def measure(users: int = 50_000, rounds: int = 100) -> Results:
    results, asked = Results("races"), Asked()
    with databases.running() as database:
        seeds.prepare(database)
        seeds.segments(database, len(SLUGS))
        with processes.serving(database, tasks=0) as one, processes.serving(database, tasks=0) as other:
            began = time.perf_counter()
            asyncio.run(_race(asked, (one, other), users, rounds))
            seconds = time.perf_counter() - began
        found = _found(results, database)
    results.raw |= {"seconds": seconds, "lists": asked.lists, "changes": asked.changes, "errors": asked.errors[:SHOWN]}
    for error in asked.errors[:SHOWN]:
        said(error)
    results.add("rounds", rounds)
    results.add("bulk changes", len(asked.lists) + len(asked.changes), least=2 * rounds)
    results.add("single changes between them", len(asked.singles), least=rounds)
    results.add("errors that reached a client", len(asked.errors), most=0)
    results.add("differences that verify finds", found, most=0)
    results.add("a list of all users, median", middle(asked.lists) * 1000, "ms")
    results.add("the slowest", max(asked.lists) * 1000, "ms")
    results.add("a tenth of them by changeMemberships, median", middle(asked.changes) * 1000, "ms")
    results.add("the slowest of these", max(asked.changes) * 1000, "ms")
    results.add("a single change, median", middle(asked.singles) * 1000, "ms")
    results.add("a single change, p99", percentile(asked.singles, 99) * 1000, "ms")
    results.add("the slowest single change", max(asked.singles) * 1000, "ms")
    return results


def _found(results: Results, database: Database) -> int:
    results.raw["events"] = database.sql("SELECT action, count(*) FROM membership_events GROUP BY action")
    said("looking at all of it")
    return database.differences()


async def _race(asked: Asked, clients: tuple[Client, Client], users: int, rounds: int) -> None:
    ids = sorted(seeds.user_id(number) for number in range(users))
    for number in range(rounds):
        ended = asyncio.Event()
        singles = [_singles(asked, client, ids, ended) for client in clients for _ in range(SINGLES)]
        await asyncio.gather(_both(asked, clients, ids, number, ended), *singles)
        said(
            f"round {number + 1}: {asked.lists[-1]:.2f} s, {len(asked.singles)} single changes, "
            f"{len(asked.errors)} errors"
        )


async def _both(
    asked: Asked, clients: tuple[Client, Client], ids: list[str], number: int, ended: asyncio.Event
) -> None:
    """One way in one round, and back in the next: so much is written in each. They contradict each other, too."""
    # Each process has the one and the other.
    one, other = clients[:: -1 if number % 4 > 1 else 1]
    try:
        await asyncio.gather(_list(asked, one, ids, number), _changes(asked, other, ids[::-1], number))
    finally:
        ended.set()


async def _list(asked: Asked, client: Client, ids: list[str], number: int) -> None:
    async with Wire(client.host, client.port) as wire:
        query = (ADD, REMOVE)[number % 2]
        await asked.ask(wire, query, {"slug": SLUGS[0], "userIds": ids}, asked.lists)


async def _changes(asked: Asked, client: Client, ids: list[str], number: int) -> None:
    add, remove = SLUGS[:: 1 if number % 2 else -1]
    async with Wire(client.host, client.port) as wire:
        for start in range(0, len(ids), CHANGES):
            some = [{"userId": user_id, "add": [add], "remove": [remove]} for user_id in ids[start : start + CHANGES]]
            await asked.ask(wire, MANY, {"changes": some}, asked.changes)


async def _singles(asked: Asked, client: Client, ids: list[str], ended: asyncio.Event) -> None:
    async with Wire(client.host, client.port) as wire:
        while not ended.is_set():
            add, remove = random.sample(SLUGS, 2)
            change = {
                "userId": random.choice(ids[: random.choice((OFTEN, len(ids)))]),
                "add": [add],
                "remove": [remove],
            }
            await asked.ask(wire, CHANGE, change, asked.singles)


def main(
    users: Annotated[int, typer.Option(help="How many each bulk change is about.")] = 50_000,
    rounds: Annotated[int, typer.Option(help="How often they meet.")] = 100,
    json: Json = None,
) -> None:
    figures.conclude([measure(users, rounds)], json)


if __name__ == "__main__":
    typer.run(main)
