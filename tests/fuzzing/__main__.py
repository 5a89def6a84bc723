"""Sends tens of thousands of hostile requests to a server of its own, and says what came of them.

`python -m fuzzing --requests 50000 --seed 8 --save FOLDER`; it exits with 1 when anything went wrong. Files for imports
are sent with `--files`.
"""

import argparse
import asyncio
import random
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

from conftest import Client
from databases import migrated
from operations import change, create, slugs
from serving import Process, server_process

from fuzzing import importing_files
from fuzzing.running import Account, Cases, keep, run, save, world
from server import embedded

# How much more a process may hold at the end than in the middle, and in the middle than when it was warm.
TOLERANCE_MB = 6.0
# Before so many requests everything that is kept is still being filled.
WARM = 20_000
FAILED = re.compile(r"Traceback|Exception in callback| (ERROR|CRITICAL) ")


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[Process, Path]]:
    """A server process with databases of its own, and its log."""
    log = folder / "server.log"
    with embedded.running(folder / "data", durable=False) as servers, log.open("wb") as written:
        await migrated(servers.database_url)
        async with server_process(servers.database_url, servers.redis_url, written, DATA_DIR=str(folder)) as process:
            yield process, log


async def requests(count: int, seed: int, folder: Path, saved: Path | None) -> bool:
    """Whether nothing was wrong."""
    async with serving(folder) as (client, log):
        held: dict[int, float] = {}
        looked_at = {count // 3, count // 2, count}

        def passed(number: int) -> None:
            if number in looked_at:
                held[number] = client.megabytes

        account = await run(client, Cases(seed, await world(client)), count, passed)
        await _goes_on(client)
    wrong = [line for line in log.read_text(errors="replace").splitlines() if FAILED.search(line)]
    _print(account, seed, held, wrong)
    if saved is not None:
        save(account.findings, seed, saved)
        keep(saved, f"{seed}.log", log.read_bytes())
    return not account.findings and not wrong and (count < WARM or _growth(held) <= TOLERANCE_MB)


async def imports(count: int, seed: int, folder: Path, saved: Path | None) -> bool:
    """The same with files for imports."""
    async with serving(folder) as (client, log):
        held: dict[int, float] = {}
        began = time.monotonic()

        def passed(number: int) -> None:
            if number in {count // 3, count // 2, count}:
                held[number] = client.megabytes

        tally = await importing_files.run(client, seed, count, passed, bombs=True)
        seconds = time.monotonic() - began
        await _goes_on(client)
    wrong = [line for line in log.read_text(errors="replace").splitlines() if FAILED.search(line)]
    print(
        f"{tally.kinds.total()} files with seed {seed} in {seconds:.0f} s, {tally.compared} compared with Python's csv"
    )
    print("memory: " + ", ".join(f"{size:.1f} MB after {number}" for number, size in sorted(held.items())))
    for title, counts in (("kind", tally.kinds), ("end", tally.ends), ("rows", tally.rows)):
        print(f"\n{title:>26}    number")
        for name, number in counts.most_common():
            print(f"{name:>26}  {number:>8}")
    print(f"\nfindings: {len(tally.findings)}; lines of the log that tell of a failure: {len(wrong)}")
    for number, file, what in tally.findings:
        print(f"  number {number}, {file.kind}: {what[:300]}")
        if saved is not None:
            keep(saved, f"{seed}-{number}.csv", file.content)
    print(*(f"  {line[:300]}" for line in wrong[:20]), sep="\n")
    return not tally.findings and not wrong and _growth(held) <= TOLERANCE_MB


def _growth(held: dict[int, float]) -> float:
    sizes = list(held.values())
    return max(after - before for before, after in pairwise(sizes))


async def _goes_on(client: Client) -> None:
    """What is ordinary goes on being answered rightly."""
    await create(client, "Afterwards")
    payload = await change(client, "afterwards", add=["Afterwards"])
    assert (payload["added"], payload["userErrors"]) == (["Afterwards"], [])
    assert "Afterwards" in await slugs(client, "afterwards")


def _print(account: Account, seed: int, held: dict[int, float], wrong: list[str]) -> None:
    total = account.kinds.total()
    print(f"{total} requests with seed {seed} in {account.seconds:.0f} s")
    print(f"slowest answer: {account.slowest * 1_000:.0f} ms ({account.slowest_kind})")
    print(f"late among others, and in time alone: {account.late}")
    print("memory: " + ", ".join(f"{size:.1f} MB after {number}" for number, size in sorted(held.items())))
    for title, counts in (("kind", account.kinds), ("answer", account.statuses)):
        print(f"\n{title:>22}  requests")
        for name, number in counts.most_common():
            print(f"{name:>22}  {number:>8}")
    print(f"\nfindings: {len(account.findings)}; lines of the log that tell of a failure: {len(wrong)}")
    for finding in account.findings[:50]:
        print(f"  number {finding.number}, {finding.case.kind}: {finding.wrong}")
    for line in wrong[:20]:
        print(f"  {line[:300]}")


def main() -> None:
    arguments = argparse.ArgumentParser(prog="python -m fuzzing", description="Send hostile requests to a server.")
    arguments.add_argument("--requests", type=int, default=50_000)
    arguments.add_argument("--files", type=int, help="send so many files for imports instead")
    arguments.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments.add_argument("--save", type=Path, help="where to keep what was found, and the server's log")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.files is not None:
            work = imports(given.files, given.seed, Path(folder), given.save)
        else:
            work = requests(given.requests, given.seed, Path(folder), given.save)
        sys.exit(not asyncio.run(work))


if __name__ == "__main__":
    main()
