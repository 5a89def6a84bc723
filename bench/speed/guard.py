"""`make bench-check`: whether the hot read costs no more than it did, beside the bare limit of the same minute; and
whether it, and a change, take no more steps.
"""

import json
import platform
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from bench import databases, figures
from bench.figures import Results, ratio
from bench.speed import competitors, rounds, steps, works, wrk
from bench.speed.data import seeded
from bench.speed.rounds import Plan
from bench.speed.stage import Stage

BASELINE = Path(__file__).parents[1] / "baseline.json"
USERS = 20_000
PLAN = Plan(rounds=3, seconds=4)
# What other work on the machine, and another machine, make of the ratio; beyond it something has become slower.
TOLERANCE = 0.15
BARE = "bare ASGI's CPU time / ours, for a hot read"
# Another version of a library may take some more; each Python has steps of its own.
MORE_STEPS = 0.03
STEPS = {
    f"steps of {what} in Python {'.'.join(platform.python_version_tuple()[:2])}": work
    for what, work in (("a hot read", works.MEMBERSHIPS), ("a change", works.CHANGE))
}


def measure() -> Results:
    """Our share of the bare limit, by CPU time, which others on the machine change less than the rate; and steps."""
    results = Results("hot read")
    with (
        databases.running() as cluster,
        seeded(cluster, "guard", USERS, history=False) as data,
        ExitStack() as ending,
    ):
        stage = Stage(data, ending)
        who = stage.able(works.MEMBERSHIPS, (competitors.SEGMENTQL, competitors.BY_NAME["bare"]))
        found = rounds.measure(stage, works.MEMBERSHIPS, who, PLAN)
        for what, work in STEPS.items():
            results.raw[what] = steps.count(data, work).total
    ours, bare = found["segmentql"], found["bare"]
    results.add("our rate / bare ASGI", ratio([one.rate for one in ours], [one.rate for one in bare]))
    results.raw["share"] = median(theirs.cpu / one.cpu for one, theirs in zip(ours, bare, strict=True))
    return results


def main(
    keep: Annotated[bool, typer.Option("--keep", help="Take what is measured as what is to be kept.")] = False,
) -> None:
    wrk.required()
    results = measure()
    share = results.raw["share"]
    kept: dict[str, float] = json.loads(BASELINE.read_text())
    if keep:
        kept |= {BARE: round(share, 3), **{what: round(results.raw[what]) for what in STEPS}}
        BASELINE.write_text(json.dumps(kept, indent=2) + "\n")
    results.add(BARE, share, least=kept[BARE] * (1 - TOLERANCE))
    for what in STEPS:
        known = kept.get(what)
        results.add(what, results.raw[what], most=None if known is None else known * (1 + MORE_STEPS))
    figures.conclude([results], None)


if __name__ == "__main__":
    typer.run(main)
