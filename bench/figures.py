"""What was measured, and whether its bound holds."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

# From here on fractions say nothing.
WHOLE = 1_000
Json = Annotated[Path | None, typer.Option(help="Where the raw results go.")]


@dataclass(frozen=True, slots=True)
class Figure:
    what: str
    value: float
    unit: str = ""
    # What it must not be below, and not above.
    least: float | None = None
    most: float | None = None

    @property
    def holds(self) -> bool:
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)

    @property
    def bound(self) -> str:
        if self.least is not None and self.least == self.most:
            return f"= {_shown(self.least)}"
        return " ".join(
            f"{sign} {_shown(each)}" for sign, each in (("≥", self.least), ("≤", self.most)) if each is not None
        )


@dataclass(slots=True)
class Results:
    """The figures of one subject, and what they were made of."""

    subject: str
    figures: list[Figure] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)

    def add(
        self, what: str, value: float, unit: str = "", *, least: float | None = None, most: float | None = None
    ) -> None:
        figure = Figure(what, value, unit, least, most)
        self.figures.append(figure)
        said(f"{what}: {_shown(value)} {unit} {figure.bound}")


def said(line: str) -> None:
    """For whoever watches: it takes minutes."""
    Console(stderr=True, highlight=False).print(line, style="dim", markup=False)


def percentile(values: Sequence[float], hundredth: int) -> float:
    return quantiles(values, n=100)[hundredth - 1]


def middle(values: Sequence[float]) -> float:
    return median(values)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of rounds: what disturbs the machine for long disturbs both sides of a round."""
    return median(one / other for one, other in zip(ours, theirs, strict=True))


def conclude(subjects: Sequence[Results], path: Path | None) -> None:
    """Print all figures and keep the raw results. Exits with 1 when a bound does not hold."""
    table = Table("subject", "what", "measured", "bound", "holds")
    for results in subjects:
        for figure in results.figures:
            holds = "" if not figure.bound else "yes" if figure.holds else "NO"
            table.add_row(results.subject, figure.what, f"{_shown(figure.value)} {figure.unit}", figure.bound, holds)
    Console(width=140).print(table)
    if path is not None:
        path.write_text(json.dumps([asdict(results) for results in subjects], indent=1))
    if not all(figure.holds for results in subjects for figure in results.figures):
        raise typer.Exit(1)


def _shown(value: float) -> str:
    whole = value == int(value) or abs(value) >= WHOLE
    return f"{value:,.0f}".replace(",", " ") if whole else f"{value:.3g}"
