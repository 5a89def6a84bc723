"""`make bench`: SegmentQL beside the fastest GraphQL servers, in one run."""

import signal
import sys
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from bench import databases, figures
from bench.figures import Json, Results
from bench.speed import beside, bulk, changes, competitors, growth, offered, report, works, wrk
from bench.speed import rounds as turns
from bench.speed.competitors import Competitor
from bench.speed.data import seeded
from bench.speed.rounds import Plan
from bench.speed.stage import Stage
from bench.speed.works import Work

WORKS = (*(work.name for work in works.WORKS), "bulk", "beside", "growth")
PEERS = tuple(dict.fromkeys(one.base for one in competitors.ALL if not one.ours))


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be measured, and how."""

    works: Collection[str]
    peers: Collection[str]
    plan: Plan
    rate: float
    chart: Path | None


def main(
    size: Annotated[int, typer.Option(help="Users, each with six memberships.")] = 1_000_000,
    rounds: Annotated[int, typer.Option(help="How often everybody's turn comes.")] = 3,
    seconds: Annotated[
        float, typer.Option(min=1, max=30, help="How long a turn lasts; no list expires within it.")
    ] = 5,
    rate: Annotated[float, typer.Option(help="Requests a second, where all are asked as often.")] = 3_000,
    only: Annotated[str, typer.Option(help=f"What is measured, with commas: {', '.join(WORKS)}.")] = "",
    peers: Annotated[str, typer.Option(help=f"Beside whom, with commas: {', '.join(PEERS)}.")] = "",
    json: Json = None,
    chart: Annotated[Path | None, typer.Option(help="Where the chart of the hot read goes, as SVG.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Where the tables go, for the docs.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the users, and one short round.")] = False,
) -> None:
    """Load a data set, start everybody, and let them take turns."""
    wrk.required()
    # Whatever was started ends with us then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sizes = growth.SIZES
    if quick:
        size, rounds, seconds = size // 10, 1, 2
        sizes = tuple(each // 10 for each in sizes)
    asked = Asked(_named(only, WORKS), _named(peers, PEERS), Plan(rounds, seconds), rate, chart)
    subjects: list[Results] = []
    with databases.running() as cluster:
        if set(asked.works) != {"growth"}:
            with seeded(cluster, "speed", size, history=True) as data, ExitStack() as ending:
                subjects += _subjects(Stage(data, ending), asked)
        if "growth" in asked.works:
            subjects.append(growth.measure(cluster, asked.plan, sizes))
    if markdown is not None:
        markdown.write_text("\n".join(each.raw["table"] for each in subjects if "table" in each.raw))
    figures.conclude(subjects, json)


def _named(text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    named = tuple(text.split(",")) if text else known
    if unknown := set(named) - set(known):
        raise typer.BadParameter(f"There is no {', '.join(sorted(unknown))}: it is {', '.join(known)}.")
    return named


def _subjects(stage: Stage, asked: Asked) -> Iterator[Results]:
    for work in works.WORKS:
        if work.name in asked.works:
            yield _subject(stage, asked, work)
    if "bulk" in asked.works:
        yield report.of_bulk(bulk.measure(stage, _who(stage, asked, works.CHANGE), asked.plan))
    if "beside" in asked.works:
        yield report.of_beside(*beside.measure(stage, asked.plan))
    # A bound that was not measured does not hold.
    absent = Results("competitors", raw=dict(stage.missing))
    absent.add("who could not take part", len(stage.missing), most=0)
    yield absent


def _subject(stage: Stage, asked: Asked, work: Work) -> Results:
    who = _who(stage, asked, work)
    if work is works.OFFERED:
        return report.of_offered(offered.measure(stage, who, asked.plan, asked.rate), asked.rate)
    if work is works.CHANGE:
        return report.of_changes(*changes.measure(stage, who, asked.plan))
    found = turns.measure(stage, work, who, asked.plan)
    if work is works.MEMBERSHIPS and asked.chart is not None:
        report.chart(found, asked.chart)
    return report.of_work(work, found)


def _who(stage: Stage, asked: Asked, work: Work) -> list[Competitor]:
    named = [competitors.BY_NAME[name] for name in work.competitors]
    return stage.able(work, [one for one in named if one.ours or one.base in asked.peers])


if __name__ == "__main__":
    typer.run(main)
