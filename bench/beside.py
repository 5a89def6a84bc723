"""Whether readers hardly notice a bulk import that the same process works on."""

import time
from pathlib import Path
from typing import Annotated

import typer

from bench import broken, databases, figures, importing, load, processes, seeds
from bench.client import Client
from bench.databases import Database
from bench.figures import Json, Results, middle, percentile, said
from bench.load import Load

READS = 10_000
# A second: modest for one process.
RATE = 150
# Segments are numbered: that of the readers, and from there on one for each import.
KNOWN = 1
WARM_ROWS = 1_000
Window = tuple[float, float]


def measure(rows: int = 1_000_000, users: int = 100_000, reads: int = READS, rate: float = RATE) -> Results:
    results = Results("reads beside an import")
    # Halves of the reads are one after the other: what disturbs the machine for long disturbs both sides.
    seconds = reads / rate / 2
    idle: list[Window] = []
    importing_: list[Window] = []
    with databases.running() as database:
        _seed(database, users)
        ids = [f"imported-{number}" for number in range(rows)]
        path = broken.plain(database.folder / "list.csv", ids)
        warm = broken.plain(database.folder / "warm.csv", ids[:WARM_ROWS])
        with (
            processes.serving(database, tasks=2, rate_limit=1_000) as client,
            load.reading(client, rate=rate, users=users, path=database.folder / "reads.json") as load_,
        ):
            importing.end(client, importing.begin(client, f"S{KNOWN + 1}", warm))
            segment = KNOWN + 2
            for _ in range(2):
                seeds.settle(database)
                idle.append(_idle(seconds))
                while sum(ended - began for began, ended in importing_) < seconds * len(idle):
                    importing_.append(_import(client, f"S{segment}", path))
                    segment += 1
    _conclude(results, load_, idle, importing_)
    return results


def _seed(database: Database, users: int) -> None:
    base = seeds.prepare(database)
    seeds.segments(database, 64)
    for segment in range(60, 65):
        seeds.members(database, base, segment, users, expired=False)
    seeds.settle(database)


def _idle(seconds: float) -> Window:
    began = time.monotonic()
    time.sleep(seconds)
    return began, time.monotonic()


def _import(client: Client, slug: str, path: Path) -> Window:
    """From when the file is sent to when its rows are members."""
    began = time.monotonic()
    done = importing.end(client, importing.begin(client, slug, path))
    said(f"{slug}: {done.rows} rows in {done.seconds:.1f} s")
    return began, time.monotonic()


def _conclude(results: Results, load_: Load, idle: list[Window], importing_: list[Window]) -> None:
    figures_ = {
        "idle": [seconds for window in idle for seconds in load_.between(*window)],
        "import": [seconds for window in importing_ for seconds in load_.between(*window)],
    }
    results.raw |= {"idle": idle, "importing": importing_, "reads": load_.reads}
    for name, seconds in figures_.items():
        results.add(f"{name}: reads", len(seconds))
        for hundredth in (50, 99):
            results.add(f"{name}: p{hundredth}", percentile(seconds, hundredth) * 1_000, "ms")
        results.add(f"{name}: slowest", max(seconds) * 1_000, "ms")
    results.add("import / idle: p50", middle(figures_["import"]) / middle(figures_["idle"]))
    results.add("import / idle: p99", percentile(figures_["import"], 99) / percentile(figures_["idle"], 99), most=3)


def main(
    rows: Annotated[int, typer.Option(help="Lines of each import's file.")] = 1_000_000,
    reads: Annotated[int, typer.Option(help="Reads without an import, and as many beside one.")] = READS,
    json: Json = None,
) -> None:
    figures.conclude([measure(rows, reads=reads)], json)


if __name__ == "__main__":
    typer.run(main)
