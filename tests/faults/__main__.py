"""`python -m faults`: strikes with every fault, and says what came of it."""

import asyncio
import importlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from faults import stack, table
from faults.checker import Findings
from faults.row import ROWS
from faults.running import Result, run

for name in sorted(Path(__file__).parent.glob("rows_*.py")):
    importlib.import_module(f"faults.{name.stem}")

console = Console(width=None if sys.stdout.isatty() else 200)


def main(
    rows: Annotated[str, typer.Option(help="Which faults, with commas; all of them without it.")] = "",
    repetitions: Annotated[int, typer.Option(help="How often each of them strikes.", min=1)] = 20,
    seed: Annotated[int, typer.Option(help="What chance begins with; 0 draws one.")] = 0,
    parallel: Annotated[int, typer.Option(help="Rows at the same time, each with servers of its own.", min=1)] = 2,
    timed: Annotated[bool, typer.Option(help="Whether recoveries and requests that take long are wrong.")] = True,
    planted: Annotated[str, typer.Option(help="A bug that the servers have: it has to be found.")] = "",
    json_: Annotated[Path | None, typer.Option("--json", help="Where the results go, row by row.")] = None,
    page: Annotated[Path | None, typer.Option(help="A page with marks, between which the table goes.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where the servers keep their data.")] = None,
) -> None:
    """Strike with every fault, and check that nothing was lost, doubled, or answered twice in different ways."""
    names = [each for each in rows.split(",") if each] or list(ROWS)
    if unknown := [each for each in names if each not in ROWS]:
        raise typer.BadParameter(f"there is no fault {', '.join(unknown)}: there are {', '.join(ROWS)}")
    seed = seed or secrets.randbelow(10**6)
    place = folder or Path(tempfile.mkdtemp(prefix="segmentql-faults-"))
    place.chmod(0o755)  # PostgreSQL may run as somebody else
    if len(names) == 1:
        results = [_one(names[0], repetitions, seed, place, planted)]
    else:
        results = _several(names, repetitions, seed, place, parallel, planted)
    if json_ is not None:
        json_.write_text(json.dumps([each.as_json() for each in results], indent=1))
    said = (
        f"Seed {seed}, {repetitions} of each, in {sum(each.seconds for each in results) / 60:.0f} minutes of servers."
    )
    if page is not None:
        table.write_into(page, results, said)
    console.print(table.as_rich(results))
    console.print(said)
    for result in results:
        for wrong in [*result.wrong(ROWS[result.row], timed=timed), *result.findings.examples]:
            console.print(f"{result.row}: {wrong}", style="red", markup=False)
    sys.exit(any(result.wrong(ROWS[result.row], timed=timed) for result in results))


def _one(name: str, repetitions: int, seed: int, place: Path, planted: str) -> Result:
    async def running() -> Result:
        prepared = place / "template"
        template = prepared / "postgres" if prepared.exists() else await stack.template(prepared)
        return await run(
            ROWS[name],
            repetitions=repetitions,
            seed=seed,
            folder=place / name,
            template=template,
            planted=planted or None,
        )

    return asyncio.run(running())


def _several(names: list[str], repetitions: int, seed: int, place: Path, parallel: int, planted: str) -> list[Result]:
    """Each in a process of its own, so that none waits for another."""
    asyncio.run(stack.template(place / "template"))

    def one(name: str) -> Result:
        found = place / f"{name}.json"
        command = [sys.executable, "-m", "faults", "--rows", name, "--repetitions", str(repetitions)]
        command += ["--seed", str(seed), "--json", str(found), "--folder", str(place)]
        command += ["--planted", planted] if planted else []
        said = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
        if not found.exists():
            lost = Result(name, seed, repetitions, findings=Findings())
            lost.findings.tell("broken", f"it came to no end: {said.stderr[-2_000:]}")
            return lost
        ((result,),) = [json.loads(found.read_text())]
        result = Result(**result | {"findings": Findings(**result["findings"])})
        console.print(f"{name}: {'; '.join(result.wrong(ROWS[name])) or 'held'} ({result.seconds:.0f} s)", markup=False)
        return result

    with ThreadPoolExecutor(parallel) as pool:
        return list(pool.map(one, names))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    typer.run(main)
