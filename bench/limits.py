"""Whether a client over its limit is told so fast and truly, and whether others, and readers, notice nothing."""

import asyncio
import time
from http import HTTPStatus
from typing import Annotated, Any

import typer

from bench import beside, databases, figures, load, overuse, processes, seeds
from bench.beside import READS
from bench.client import Client
from bench.figures import Json, Results, middle, percentile
from bench.load import Load
from bench.overuse import Overuse
from bench.wire import Wire

USERS = 10_000
# Points a second, what asks for more, and the other, which asks for less. Much more would measure how two cores are
# shared by those who ask, which are programs in Python too.
LIMIT, BURST, OVERUSE, OTHER = 100, 200, 300, 50
ROUNDS, SECONDS = 3, 10
# What a program in Python takes to begin, on a core that others would have.
START_SECONDS = 3
# It takes half a second to come back.
EXPENSIVE = "{ __schema { queryType { name } } }"
TRIALS = 40
THROUGH = {"TRUSTED_PROXIES": "127.0.0.1", "RATE_BURST": str(BURST), "REDIS_BUDGET_MS": "1000"}
OVERUSING, OTHERS, WAITING = "192.0.2.1", "192.0.2.2", "192.0.2.3"
Window = tuple[float, float]


def measure() -> Results:
    results = Results("limits")
    idle: list[Window] = []
    beside_: list[Window] = []
    overuses: list[Overuse] = []
    with databases.running() as database:
        base = seeds.prepare(database)
        seeds.segments(database, 10)
        seeds.members(database, base, 1, USERS, expired=False)
        seeds.settle(database)
        path = database.folder / "reads.json"
        with processes.serving(database, tasks=0, rate_limit=LIMIT, **THROUGH) as client:
            with load.reading(client, rate=OTHER, users=USERS, path=path, address=OTHERS) as reads:
                time.sleep(SECONDS / 2)
                for number in range(ROUNDS):
                    idle.append(_window())
                    answers = database.folder / f"overuse-{number}.json"
                    with overuse.going_on(client, rate=OVERUSE, address=OVERUSING, path=answers) as one:
                        time.sleep(START_SECONDS)
                        beside_.append(_window())
                    overuses.append(one)
            errors = asyncio.run(_errors(client))
    _conclude(results, overuses, errors)
    _conclude_other(results, reads, idle, beside_)
    return results


def _window() -> Window:
    began = time.monotonic()
    time.sleep(SECONDS)
    return began, time.monotonic()


async def _errors(client: Client) -> list[float]:
    """By how many seconds each refusal was wrong about when the same would be allowed."""
    errors: list[float] = []
    async with Wire(client.host, client.port, WAITING) as wire:
        for _ in range(TRIALS):
            while (answer := await wire.exchange(EXPENSIVE))[0] == HTTPStatus.OK:
                pass
            told = first_told = _told(answer)
            # Asking earlier would make it later, and so would asking all the time.
            while answer[0] != HTTPStatus.OK:
                await asyncio.sleep(told - time.monotonic())
                if (answer := await wire.exchange(EXPENSIVE))[0] != HTTPStatus.OK:
                    told = _told(answer)
            errors.append(time.monotonic() - first_told)
    return errors


def _told(refusal: tuple[int, Any]) -> float:
    seconds: float = refusal[1]["errors"][0]["extensions"]["retryAfterMs"] / 1_000
    return time.monotonic() + seconds


def _conclude(results: Results, overuses: list[Overuse], errors: list[float]) -> None:
    refused = [seconds for one in overuses for seconds in one.seconds(HTTPStatus.TOO_MANY_REQUESTS)]
    allowed = [seconds for one in overuses for seconds in one.seconds(HTTPStatus.OK)]
    seconds = ROUNDS * (SECONDS + START_SECONDS)
    results.raw |= {"errors": errors, "refused": refused, "allowed": allowed}
    results.add("requests over the limit, a second", len(refused) / seconds, least=LIMIT)
    # With what it had at its beginning.
    most = LIMIT + BURST / SECONDS
    results.add("requests within it, a second", len(allowed) / seconds, least=LIMIT * 0.9, most=most * 1.05)
    for name, found in (("refused", refused), ("allowed", allowed)):
        results.add(f"{name}: p50", percentile(found, 50) * 1_000, "ms")
        results.add(f"{name}: p99", percentile(found, 99) * 1_000, "ms")
    results.add("refused / allowed: p50", middle(refused) / middle(allowed), most=1)
    results.add("retryAfterMs: refusals looked at", len(errors))
    results.add("retryAfterMs: wrong by, median", middle([abs(each) for each in errors]) * 1_000, "ms")
    results.add("retryAfterMs: wrong by, at most", max(map(abs, errors)) * 1_000, "ms", most=100)


def _conclude_other(results: Results, reads: Load, idle: list[Window], beside_: list[Window]) -> None:
    found = {
        "alone": [seconds for window in idle for seconds in reads.between(*window)],
        "beside": [seconds for window in beside_ for seconds in reads.between(*window)],
    }
    results.raw |= found
    for name, seconds in found.items():
        results.add(f"another client {name}: p50", percentile(seconds, 50) * 1_000, "ms")
        results.add(f"another client {name}: p99", percentile(seconds, 99) * 1_000, "ms")
    results.add("another client beside / alone: p50", middle(found["beside"]) / middle(found["alone"]))
    results.add(
        "another client beside / alone: p99", percentile(found["beside"], 99) / percentile(found["alone"], 99), most=3
    )


def main(
    reads: Annotated[int, typer.Option(help="Reads without an import, and as many beside one.")] = READS,
    json: Json = None,
) -> None:
    figures.conclude([measure(), beside.measure(reads=reads)], json)


if __name__ == "__main__":
    typer.run(main)
