"""The database's clock, as a process that only sees it now and then can know it."""

from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from db import clock
from db.clock import Clock

# When an observation is sent and received, in seconds of the process's clock, and when within that it is made.
observations = st.lists(st.tuples(st.floats(0, 40), st.floats(0, 2), st.floats(0, 1)), min_size=1, max_size=20)


@given(observations, st.floats(0, 30), st.integers(-(10**15), 10**15), st.floats(-1, 1))
def test_the_estimate_is_never_behind_and_at_most_the_best_round_trip_ahead(
    made: list[tuple[float, float, float]], later: float, offset: int, drift: float
) -> None:
    """Whatever the round trips are, and however wrong this machine's crystal is within its bounds."""

    def database(ticks: float) -> int:
        return offset + int(ticks * (1 + drift * clock.DRIFT) * 1e6)

    estimated, now, best = Clock(), 0.0, float("inf")
    for pause, trip, share in made:
        sent = now + pause
        now = sent + trip
        estimated.observe(sent, now, database(sent + trip * share))
        best = min(best + pause * 2 * clock.DRIFT, trip)
    with patch("db.clock.ticks", lambda: now + later):
        ahead = estimated.now() - database(now + later)
    assert -10 <= ahead <= best * 1e6 + (now + later) * 3 * clock.DRIFT * 1e6 + 10


def test_a_clock_that_was_set_is_believed_at_once() -> None:
    estimated = Clock()
    estimated.observe(0, 0.001, 1_000_000)
    for jump in (7_200_000_000, -7_200_000_000):
        estimated.observe(1, 1.002, 2_000_000 + jump)
        assert abs(estimated._high - 1_000_000 - jump) <= 2


def test_a_quick_observation_is_not_made_worse_by_a_slow_one() -> None:
    estimated = Clock()
    estimated.observe(0, 0.001, 500)
    estimated.observe(1, 3, 2_000_500)
    assert 500 <= estimated._high <= 500 + 402
