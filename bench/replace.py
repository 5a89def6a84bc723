"""Whether a list that replaces another does so at once, for everybody who reads meanwhile, from whichever process."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any

import typer

from bench import broken, databases, figures, importing, processes, seeds
from bench.broken import NEVER
from bench.client import CHANGE, Client, Done, key
from bench.figures import Json, Results, middle, percentile, said
from bench.wire import Wire

SLUG = "S1"
# Of each process.
PAIR_READERS, MEMBER_READERS = 3, 1
# Between two requests of a reader: the cores are for the import, too.
PAUSE_SECONDS = 0.02
IDLE_SECONDS = 8
# Half of all reads are of these few, whom the cache knows.
KNOWN = 200
# Of so many pairs one user is read alone before: the cache knows that one, and not the other.
ALONE = 1 / 3
# Ids tell their list, and alternate in the order of ids.
LISTS = "ab"
CACHED = f'query ($ids: [ID!]!) {{ users(ids: $ids) {{ isIn(slug: "{SLUG}") }} }}'
LATEST = f'query ($ids: [ID!]!) {{ users(ids: $ids) {{ segments(only: ["{SLUG}"], freshness: LATEST) {{ slug }} }} }}'
MEMBERS = f"""{{ segment(slug: "{SLUG}") {{
  members(first: 5) {{ nodes {{ id }} }} memberCount(limit: 1000000) {{ value exact }} }} }}"""
Window = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Read:
    kind: str
    began: float
    ended: float
    # One of the lists, or what else was found.
    saw: str


@dataclass(slots=True)
class Seen:
    users: int
    reads: list[Read] = field(default_factory=list)
    # When changes began, and when they were answered.
    changes: list[Window] = field(default_factory=list)
    # What was answered to those that had waited too long.
    refused: list[str] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    imports: list[Done] = field(default_factory=list)


def measure(users: int = 200_000, replacements: int = 4) -> Results:
    results, seen = Results("replace"), Seen(users)
    with databases.running() as database:
        base = seeds.prepare(database)
        seeds.segments(database, 1)
        first = [(name(number, LISTS[0]), NEVER) for number in range(users)]
        importing.put_in(database, 1, first, base - timedelta(days=10))
        for each in LISTS:
            broken.plain(database.folder / each, [name(n, each) for n in random.sample(range(users), users)])
        seeds.settle(database)
        with (
            processes.serving(database, tasks=0) as one,
            processes.serving(database, tasks=0) as other,
            processes.working(database),
        ):

            def replace(number: int) -> Done:
                path = database.folder / LISTS[(number + 1) % 2]
                return importing.end(one, importing.begin(one, SLUG, path, "REPLACE"))

            asyncio.run(_watch(seen, (one, other), replace, replacements))
        attempts = int(database.sql("SELECT max(attempt) FROM tasks WHERE kind = 'IMPORT'"))
        differences = database.differences()
    _conclude(results, seen)
    results.add("attempts that one took at the most", attempts, most=1)
    results.add("differences that verify finds", differences, most=0)
    return results


def name(number: int, each: str) -> str:
    return f"{seeds.user_id(number)}-{each}"


async def _watch(seen: Seen, clients: tuple[Client, Client], replace: Callable[[int], Done], replacements: int) -> None:
    async with AsyncExitStack() as ending:
        wires = [await ending.enter_async_context(Wire(each.host, each.port)) for each in clients * 5]
        ended = asyncio.Event()

        async def go_on(one: Callable[[Wire], Awaitable[None]], wire: Wire) -> None:
            while not ended.is_set():
                await one(wire)
                await asyncio.sleep(PAUSE_SECONDS)

        asks = [_pair(seen)] * 2 * PAIR_READERS + [_members(seen)] * 2 * MEMBER_READERS + [_change(seen)] * 2
        async with asyncio.TaskGroup() as going:
            for ask, wire in zip(asks, wires, strict=True):
                going.create_task(go_on(ask, wire))
            # Once for what is slow at first.
            await asyncio.sleep(IDLE_SECONDS / 4)
            seen.windows.append(await _window(asyncio.sleep(IDLE_SECONDS)))
            for number in range(replacements):
                began = time.perf_counter()
                seen.imports.append(await asyncio.to_thread(replace, number))
                seen.windows.append((began, time.perf_counter()))
                said(f"{LISTS[number % 2]} replaced in {seen.imports[-1].seconds:.1f} s")
                # For reads that begin when it is done.
                await asyncio.sleep(1)
            ended.set()


async def _window(what: Awaitable[None]) -> Window:
    began = time.perf_counter()
    await what
    return began, time.perf_counter()


def _pair(seen: Seen) -> Callable[[Wire], Awaitable[None]]:
    async def one(wire: Wire) -> None:
        number = random.randrange(random.choice((KNOWN, seen.users)))
        kind, query = random.choice((("CACHED", CACHED), ("LATEST", LATEST)))
        if random.random() < ALONE:
            await wire.ask(CACHED, {"ids": [name(number, random.choice(LISTS))]})
        began = time.perf_counter()
        users = (await wire.ask(query, {"ids": [name(number, each) for each in LISTS]}))["users"]
        inside = [each for each, user in zip(LISTS, users, strict=True) if user.get("isIn") or user.get("segments")]
        saw = {0: "neither", 1: "".join(inside)}.get(len(inside), "both")
        seen.reads.append(Read(kind, began, time.perf_counter(), saw))

    return one


def _members(seen: Seen) -> Callable[[Wire], Awaitable[None]]:
    async def one(wire: Wire) -> None:
        began = time.perf_counter()
        segment = (await wire.ask(MEMBERS))["segment"]
        lists = {node["id"][-1] for node in segment["members"]["nodes"]}
        whole = segment["memberCount"] == {"value": seen.users, "exact": True}
        saw = lists.pop() if len(lists) == 1 and whole else f"{sorted(lists)}, {segment['memberCount']}"
        seen.reads.append(Read("members", began, time.perf_counter(), saw))

    return one


def _change(seen: Seen) -> Callable[[Wire], Awaitable[None]]:
    """Changes of the segment that change nothing: they wait as all of them do."""

    async def one(wire: Wire) -> None:
        began = time.perf_counter()
        # Each of another user: nobody waits for more than the segment.
        input = {"userId": f"nobody-{key()}", "remove": [SLUG]}
        try:
            payload: dict[str, Any] = (await wire.ask(CHANGE, {"input": input, "key": key()}))["changeUserSegments"]
        except RuntimeError as error:
            seen.refused.append(f"after {time.perf_counter() - began:.1f} s: {error}")
            return
        if payload["userErrors"]:
            raise RuntimeError(f"the service refused: {payload}")
        seen.changes.append((began, time.perf_counter()))

    return one


def _conclude(results: Results, seen: Seen) -> None:
    idle, *replacing = seen.windows
    wrong = [read for read in seen.reads if read.saw not in LISTS]
    for read in wrong[:5]:
        said(f"{read.kind} saw {read.saw}")
    for refusal in seen.refused[:5]:
        said(refusal)
    results.raw |= {
        "refused": seen.refused,
        "seconds": [done.seconds for done in seen.imports],
        "wrong": [(read.kind, read.saw) for read in wrong[:100]],
    }
    results.add("replacements", len(replacing))
    results.add("seconds of one, median", middle([done.seconds for done in seen.imports]), "s")
    for kind in ("CACHED", "LATEST", "members"):
        saw: Counter[str] = Counter()
        for number, (began, ended) in enumerate(replacing):
            old = LISTS[number % 2]
            saw.update(
                "before" if read.saw == old else "after" if read.saw in LISTS else "wrong"
                for read in seen.reads
                if read.kind == kind and read.began < ended and read.ended > began
            )
        results.add(f"{kind}: reads meanwhile that saw the list of before", saw["before"], least=1)
        results.add(f"{kind}: the list of after", saw["after"], least=1)
        results.add(f"{kind}: neither, or both", sum(read.kind == kind for read in wrong), most=0)
    _conclude_order(results, seen, replacing)
    for kind in ("CACHED", "LATEST", "members"):
        for what, windows in (("idle", [idle]), ("replacing", replacing)):
            seconds = [read.ended - read.began for read in seen.reads if read.kind == kind and _within(read, windows)]
            results.add(f"{kind}: p99 while {what}", percentile(seconds, 99) * 1000, "ms")
    for what, windows in (("idle", [idle]), ("replacing", replacing)):
        seconds = [ended - began for began, ended in seen.changes if any(a <= began < b for a, b in windows)]
        results.add(f"a change of the segment while {what}, slowest of {len(seconds)}", max(seconds) * 1000, "ms")
    results.add("changes that were refused because they had to wait too long", len(seen.refused))


def _conclude_order(results: Results, seen: Seen, replacing: list[Window]) -> None:
    """Who reads when the task is done sees the new list; who reads after somebody saw it should, too."""
    late = back = 0
    for number, (began, done) in enumerate(replacing):
        until = replacing[number + 1][0] if number + 1 < len(replacing) else float("inf")
        old, new = LISTS[number % 2], LISTS[(number + 1) % 2]
        those = [read for read in seen.reads if began <= read.began < until]
        first = min(read.ended for read in those if read.saw == new)
        late += sum(read.began > done and read.saw != new for read in those)
        returned = [read for read in those if read.began > first and read.saw == old]
        back += len(returned)
        results.raw[f"back_{number}"] = [(read.kind, read.began - first) for read in returned[:100]]
    results.add("reads begun when it was done that saw the list of before", late, most=0)
    results.add("reads begun after another had seen the new list that saw the one of before", back)


def _within(read: Read, windows: list[Window]) -> bool:
    return any(began <= read.began < ended for began, ended in windows)


def main(
    users: Annotated[int, typer.Option(help="How many each of the two lists has.")] = 200_000,
    replacements: Annotated[int, typer.Option(help="How often one replaces the other.")] = 4,
    json: Json = None,
) -> None:
    figures.conclude([measure(users, replacements)], json)


if __name__ == "__main__":
    typer.run(main)
