"""How the cost of a read grows with the data: one server over each of three sizes, which take turns."""

from contextlib import ExitStack
from dataclasses import asdict, replace

from bench.databases import Database
from bench.figures import Results, middle, ratio, said
from bench.speed import competitors, rounds, works
from bench.speed.data import OF_USER, seeded
from bench.speed.rounds import Found, Plan
from bench.speed.stage import Stage
from bench.speed.works import Work

SIZES: tuple[int, ...] = (100_000, 1_000_000, 10_000_000)
WORKS = (works.MEMBERSHIPS, works.LATEST)


def measure(cluster: Database, plan: Plan, sizes: tuple[int, ...]) -> Results:
    """Of every size the hot read and that from PostgreSQL; the hot one has a bound."""
    results = Results("growth")
    with ExitStack() as ending:
        stages = {size: _stage(cluster, place, size, ending) for place, size in enumerate(sizes)}
        for work in WORKS:
            found = _rounds(stages, work, plan)
            results.raw[work.name] = {size: [asdict(one) for one in measured] for size, measured in found.items()}
            for size, measured in found.items():
                results.add(f"{work.title}: {int(size):,} memberships", middle([one.rate for one in measured]), "/s")
            most, least = (([one.rate for one in found[str(size)]]) for size in (sizes[-1], sizes[0]))
            bound = 0.9 if work is works.MEMBERSHIPS else None
            results.add(f"{work.title}: {sizes[-1]:,} / {sizes[0]:,}", ratio(most, least), least=bound)
    return results


def _stage(cluster: Database, place: int, size: int, ending: ExitStack) -> Stage:
    # Each has lists of its own, of the same users.
    own = replace(cluster, redis_url=f"{cluster.redis_url}?db={place + 1}")
    return Stage(ending.enter_context(seeded(own, f"growth_{size}", size // OF_USER, history=False)), ending)


def _rounds(stages: dict[int, Stage], work: Work, plan: Plan) -> Found:
    found: Found = {str(size): [] for size in stages}
    for number in range(plan.rounds):
        for size, stage in rounds.in_turn(list(stages.items()), number):
            one = rounds.turn(stage, work, competitors.SEGMENTQL, plan.seconds)
            found[str(size)].append(one)
            said(f"{work.name} of {size:,} memberships: {rounds.line(one)}")
    return found
