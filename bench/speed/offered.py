"""The hot read at a rate that is the same for everybody: with a free choice whoever is slow is asked less."""

from collections.abc import Sequence

from bench.figures import said
from bench.speed import works, wrk
from bench.speed.competitors import Competitor
from bench.speed.rounds import WARM_UP_SECONDS, Plan, in_turn, written
from bench.speed.stage import Stage
from bench.speed.wrk import Run


def measure(stage: Stage, who: Sequence[Competitor], plan: Plan, rate: float) -> dict[str, list[Run]]:
    """All rounds of everybody who answers in all of them."""
    found: dict[str, list[Run]] = {competitor.name: [] for competitor in who}
    for number in range(plan.rounds):
        for competitor in [each for each in in_turn(who, number) if each.name in found]:
            server = stage.server(competitor)
            requests = written(stage, works.OFFERED, competitor, "offered")
            stage.make_ready(competitor, works.OFFERED)
            try:
                wrk.load(server.url, requests, WARM_UP_SECONDS, server.headers)
                one = wrk.load(server.url, requests, plan.seconds, server.headers, rate)
            except wrk.FailedError as error:
                stage.leave_out(competitor, works.OFFERED, error)
                del found[competitor.name]
                continue
            found[competitor.name].append(one)
            said(
                f"{rate:,.0f} offered: {competitor.title}: {one.requests / one.seconds:,.0f}/s, "
                f"p50 {one.p50 * 1e3:.2f} ms, p99 {one.p99 * 1e3:.2f} ms"
            )
    return found
