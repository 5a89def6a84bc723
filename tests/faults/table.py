"""The results of all rows, for people: in the terminal, and as a page of the docs."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from rich.table import Table

from faults.row import ROWS
from faults.running import Result

COLUMNS = (
    "fault",
    "faults",
    "operations",
    "not known",
    "lost",
    "doubled",
    "divergent",
    "stale",
    "ended early",
    "history",
    "leaks",
    "other",
    "back after (p50, max)",
    "longest request",
)


def cells(result: Result) -> list[str]:
    found = result.findings
    recoveries = result.recoveries or [0.0]
    stale = f"{found.stale} ({found.longest_staleness:.1f} s)" if found.stale else "0"
    return [
        result.row,
        str(result.faults),
        str(found.operations),
        str(found.unknown),
        *(str(each) for each in (found.lost, found.doubled, found.divergent)),
        stale,
        f"{found.early} ({found.longest_early * 1000:.0f} ms)" if found.early else "0",
        *(str(each) for each in (found.differences, found.leaks, found.broken + found.unexplained)),
        f"{median(recoveries):.2f} s, {max(recoveries):.2f} s",
        f"{found.longest_request:.1f} s",
    ]


def total(results: Sequence[Result]) -> list[str]:
    def added(name: str) -> str:
        return str(sum(getattr(result.findings, name) for result in results))

    recoveries = [each for result in results for each in result.recoveries] or [0.0]
    longest = max((result.findings.longest_request for result in results), default=0)
    early = max((result.findings.longest_early for result in results), default=0)
    staleness = max((result.findings.longest_staleness for result in results), default=0)
    return [
        "all",
        str(sum(result.faults for result in results)),
        *(added(name) for name in ("operations", "unknown", "lost", "doubled", "divergent")),
        f"{added('stale')} ({staleness:.1f} s)",
        f"{added('early')} ({early * 1000:.0f} ms)",
        *(added(name) for name in ("differences", "leaks")),
        str(sum(result.findings.broken + result.findings.unexplained for result in results)),
        f"{median(recoveries):.2f} s, {max(recoveries):.2f} s",
        f"{longest:.1f} s",
    ]


def as_rich(results: Sequence[Result]) -> Table:
    table = Table(*COLUMNS)
    for result in results:
        table.add_row(*cells(result), style="red" if result.wrong(ROWS[result.row]) else "")
    table.add_section()
    table.add_row(*total(results), style="bold")
    return table


def as_markdown(results: Sequence[Result]) -> str:
    lines = [COLUMNS, ["---"] + ["---:"] * (len(COLUMNS) - 1), *map(cells, results), total(results)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def write_into(page: Path, results: Sequence[Result], said: str) -> None:
    """Put the table, and what its rows are, where the page has its marks."""
    rows = "\n".join(f"- **{result.row}**: {ROWS[result.row].what}." for result in results)
    begin, end = "<!-- faults -->\n", "<!-- /faults -->"
    before, _, rest = page.read_text().partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}{said}\n\n{as_markdown(results)}\n{rows}\n{end}{after}")
