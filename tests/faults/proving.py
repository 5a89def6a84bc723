"""`python -m faults.proving`: a checker that cannot fail proves nothing, so each planted bug has to be found."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from faults.planted import BUGS


class Proof(NamedTuple):
    # The fault that brings it to light, striking so often.
    row: str
    repetitions: int
    # What has to be found, of the names in `Findings`.
    found: str


PROOFS = {
    "claim-outside-the-transaction": Proof("commit-answer-cut", 5, "lost"),
    "unlink-before-commit": Proof("valkey-slow", 6, "stale"),
    "fill-without-journal": Proof("stale-fill", 4, "stale"),
    "expiry-not-checked-on-read": Proof("nothing", 6, "stale"),
    "purge-without-fence": Proof("purge-frozen", 2, "broken"),
    "for-key-share": Proof("deleted-while-added", 3, "differences"),
}
TRIES = 3
assert PROOFS.keys() == BUGS.keys()
console = Console(width=None if sys.stdout.isatty() else 160)


def main(seed: Annotated[int, typer.Option(help="What chance begins with.")] = 1) -> None:
    """Plant each bug, strike, and see that it is found."""
    table = Table("planted bug", "fault that strikes", "found", "the first example")
    missed = []
    for bug, proof in PROOFS.items():
        examples: list[str] = []
        number, told = 0, 0
        # Chance decides what meets, and a busy machine does less: so there are some tries.
        while not examples and number < TRIES:
            findings = _found(bug, proof, seed + number)
            examples = [each for each in findings["examples"] if each.startswith(proof.found)]
            number, told = number + 1, findings[proof.found]
        if not examples:
            missed.append(bug)
        table.add_row(bug, proof.row, f"{told} {proof.found}", (examples or ["nothing"])[0])
    console.print(table, markup=False)
    if missed:
        console.print(f"not found: {', '.join(missed)}", style="red")
    sys.exit(bool(missed))


def _found(bug: str, proof: Proof, seed: int) -> dict[str, Any]:
    results = Path(tempfile.mkdtemp(prefix="segmentql-proof-")) / "results.json"
    command = [sys.executable, "-m", "faults", "--rows", proof.row, "--repetitions", str(proof.repetitions)]
    command += ["--seed", str(seed), "--planted", bug, "--json", str(results)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    if not results.exists():
        raise SystemExit(f"{bug}: {said.stdout[-2_000:]}{said.stderr[-2_000:]}")
    ((result),) = json.loads(results.read_text())
    findings: dict[str, Any] = result["findings"]
    return findings


if __name__ == "__main__":
    typer.run(main)
