"""What was measured, as tables and as a chart, and which bounds hold."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.figures import Results, middle, ratio
from bench.speed import competitors, tables, works
from bench.speed.rounds import Found, Measured, medians
from bench.speed.works import Work
from bench.speed.wrk import Run

# Of our rate to theirs, at least.
BOUNDS = {
    ("memberships", "mercurius"): 0.6,
    ("memberships", "strawberry"): 5.0,
    ("users", "mercurius"): 2.0,
    ("cold", "mercurius"): 1.0,
    ("change", "mercurius"): 1.0,
}


def of_work(work: Work, found: Found) -> Results:
    """A table of the medians, and our rate beside that of each other."""
    results = Results(work.name, raw={name: [asdict(one) for one in rounds] for name, rounds in found.items()})
    summed = {name: medians(rounds) for name, rounds in found.items() if rounds}
    cells = tables.rows(summed)
    tables.show(work.title, cells)
    results.raw["table"] = tables.markdown(work.title, cells)
    for ours, other in _pairs(found):
        value = ratio(_rates(found[ours]), _rates(found[other]))
        results.add(f"our rate / {_title(other)}", value, least=BOUNDS.get((work.name, other)))
    return results


def of_changes(found: Found, bare: Sequence[float]) -> Results:
    """The same for changes, and our rate beside that of the bare statement."""
    results = of_work(works.CHANGE, found)
    results.raw["pgbench"] = list(bare)
    results.add("bare statements by pgbench", middle(bare), "/s")
    if "segmentql" in found:
        results.add("our rate / pgbench", ratio(_rates(found["segmentql"]), bare))
    return results


def of_offered(found: dict[str, list[Run]], rate: float) -> Results:
    """The slowest hundredth of each, where everybody is asked as often."""
    raw = {name: [asdict(one) for one in rounds] for name, rounds in found.items()}
    results = Results(f"{rate:,.0f} reads/s offered", raw=raw)
    for name, rounds in found.items():
        results.add(f"rate of {_title(name)}", middle([one.requests / one.seconds for one in rounds]), "/s")
        results.add(f"p50 of {_title(name)}", middle([one.p50 for one in rounds]) * 1e3, "ms")
        results.add(f"p99 of {_title(name)}", middle([one.p99 for one in rounds]) * 1e3, "ms")
    for ours, other in _pairs(found):
        most = 1.0 if other == "mercurius" else None
        p99 = ratio([one.p99 for one in found[ours]], [one.p99 for one in found[other]])
        results.add(f"our p99 / {_title(other)}", p99, most=most)
    return results


def of_bulk(found: dict[str, list[float]]) -> Results:
    """How many users a second one mutation adds."""
    results = Results("bulk", raw=dict(found))
    for name, rates in found.items():
        results.add(f"users added by {_title(name)}", middle(rates), "/s")
    for ours, other in _pairs(found):
        results.add(f"our rate / {_title(other)}", ratio(found[ours], found[other]))
    return results


def of_beside(alone: Sequence[Measured], beside: Sequence[Measured]) -> Results:
    """What a cleanup and a report take from the reads beside them."""
    raw = {"alone": [asdict(one) for one in alone], "beside": [asdict(one) for one in beside]}
    results = Results("beside a cleanup and a report", raw=raw)
    results.add("reads alone", middle(_rates(alone)), "/s")
    results.add("reads beside both", middle(_rates(beside)), "/s")
    results.add("p99 beside / alone", ratio([one.p99 for one in beside], [one.p99 for one in alone]))
    return results


def chart(found: Found, path: Path) -> None:
    """Draw how many users each answers for in a second, the fastest first."""
    summed = {name: medians(rounds).rate for name, rounds in found.items() if rounds}
    most = max(summed.values())
    lines = []
    for place, (name, rate) in enumerate(sorted(summed.items(), key=lambda pair: -pair[1])):
        top, width = 8 + 28 * place, 420 * rate / most
        colour = "#d9480f" if competitors.BY_NAME[name].ours else "#8aa0b6"
        lines.append(
            f'<text x="262" y="{top + 15}" text-anchor="end">{_title(name)}</text>'
            f'<rect x="270" y="{top}" width="{width:.0f}" height="20" rx="2" fill="{colour}"/>'
            f'<text x="{276 + width:.0f}" y="{top + 15}">{rate:,.0f}</text>'
        )
    height = 16 + 28 * len(summed)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" width="760" height="{height}" '
        f'font-family="sans-serif" font-size="13" fill="#6e7781">\n'
        "<title>Reads of one user's memberships a second</title>\n" + "\n".join(lines) + "\n</svg>\n"
    )


def _pairs(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """SegmentQL, if it is there, and each that is measured beside it."""
    ours, *others = found or [""]
    if ours in found and competitors.BY_NAME[ours].ours:
        yield from ((ours, other) for other in others)


def _title(name: str) -> str:
    return competitors.BY_NAME[name].title


def _rates(rounds: Sequence[Measured]) -> list[float]:
    return [one.rate for one in rounds]
