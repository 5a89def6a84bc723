"""The medians of a work as a table: for whoever watches, and as Markdown for the docs."""

from rich.console import Console
from rich.table import Table

from bench.speed import competitors
from bench.speed.rounds import Measured

HEADS = ("", "users/s", "p50 ms", "p99 ms", "CPU s/1000", "stores s/1000", "MB", "/ mercurius", "/ bare ASGI")
Rows = list[list[str]]


def rows(medians: dict[str, Measured]) -> Rows:
    """A row for each competitor, its rate beside those of mercurius and bare ASGI of as many processes."""
    return [_row(name, one, medians) for name, one in medians.items()]


def show(title: str, cells: Rows) -> None:
    table = Table(title=title, title_justify="left")
    for head in HEADS:
        table.add_column(head, justify="right" if head else "left")
    for row in cells:
        table.add_row(*row)
    Console(width=140).print(table)


def markdown(title: str, cells: Rows) -> str:
    lines = [" | ".join(row) for row in ([title, *HEADS[1:]], ["---", *["---:"] * (len(HEADS) - 1)], *cells)]
    return "".join(f"| {line} |\n" for line in lines)


def _row(name: str, one: Measured, medians: dict[str, Measured]) -> list[str]:
    cells = [f"{one.rate:,.0f}", f"{one.p50 * 1e3:.2f}", f"{one.p99 * 1e3:.2f}", f"{one.cpu:.3f}"]
    cells += [f"{one.stores_cpu:.3f}", f"{one.megabytes:.0f}"]
    for base in ("mercurius", "bare"):
        other = next((medians[each] for each in medians if competitors.BY_NAME[each].base == base), None)
        cells.append("" if other is None else f"{one.rate / other.rate:.2f}")
    return [competitors.BY_NAME[name].title, *cells]
