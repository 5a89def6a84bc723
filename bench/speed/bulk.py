"""Ten thousand users into a segment by one mutation, one such mutation after the other."""

import itertools
import time
from collections.abc import Sequence

from bench.client import Client, key
from bench.figures import said
from bench.speed import works
from bench.speed.competitors import Competitor
from bench.speed.data import SEGMENTS
from bench.speed.rounds import Plan, in_turn
from bench.speed.stage import Stage

USERS = 10_000
REQUESTS = 3
_segments = itertools.count()


def measure(stage: Stage, who: Sequence[Competitor], plan: Plan) -> dict[str, list[float]]:
    """Of each competitor and round the users a second."""
    found: dict[str, list[float]] = {competitor.name: [] for competitor in who}
    for number in range(-1, plan.rounds):
        for competitor in in_turn(who, number):
            rate = _rate(stage, competitor)
            if number < 0:
                continue  # a warm-up
            found[competitor.name].append(rate)
            said(f"bulk: {competitor.title}: {rate:,.0f} users/s")
    return found


def _rate(stage: Stage, competitor: Competitor) -> float:
    taken = 0.0
    with Client("127.0.0.1", stage.server(competitor).port) as client:
        for _ in range(REQUESTS):
            number = next(_segments)
            # In no segment yet: the ids of the data are numbers.
            given = {"slug": f"S{number % SEGMENTS + 1}", "userIds": [f"bulk-{number}-{n}" for n in range(USERS)]}
            began = time.perf_counter()
            done = client.ask(works.BULK, input=given, key=key())["addUsersToSegment"]
            taken += time.perf_counter() - began
            if done["added"] != USERS:
                raise RuntimeError(f"{competitor.title} answered {done}")
    return REQUESTS * USERS / taken
