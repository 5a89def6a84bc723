"""The checker of the fault runs: what it must find in histories made by hand, and what it must let pass."""

from dataclasses import replace

import pytest
from faults.checker import Event, Final, Findings, check
from faults.history import Attempt, History, Outcome, Read, Value, Write

# When a membership expires tells which addition it is of; these are years away.
ONE, OTHER = 3_786_912_000_000_001, 3_786_912_000_000_002
OK, UNKNOWN, FAIL = Outcome.OK, Outcome.UNKNOWN, Outcome.FAIL
NOTHING = Final({}, [])


def write(key: str, value: Value, invoked: float, completed: float, outcome: Outcome = OK, **answer: object) -> Write:
    payload = {"added": ["S"], "updated": [], "removed": [], "replayed": False} | answer
    attempt = Attempt(0, invoked, completed, outcome, payload if outcome is OK else None)
    return Write(key, "changeUserSegments", {("u", "S"): value}, [attempt])


def read(value: Value, invoked: float, completed: float) -> Read:
    return Read("u", Attempt(0, invoked, completed, OK, {}), {} if value is None else {"S": value})


def reading(writes: list[Write], *reads: Read) -> Findings:
    return check(History(writes, list(reads)), final_of(*writes))


def final_of(*writes: Write) -> Final:
    """What the database holds when everything that was acknowledged has happened once."""
    operations = {each.key: [number] for number, each in enumerate(writes)}
    values = [next(iter(each.sets.values())) for each in writes]
    events = [
        Event("u", 1, "REMOVED" if value is None else "ADDED", value, number)
        for number, (each, value) in enumerate(zip(writes, values, strict=True))
        if each.outcome is OK
    ]
    return Final(operations, events)


def test_what_is_as_it_was_answered_is_let_pass() -> None:
    writes = [write("a", ONE, 1, 2), write("b", None, 3, 4), write("c", OTHER, 5, 6, UNKNOWN)]
    reads = [read(None, 0, 1.5), read(ONE, 1.5, 1.7), read(ONE, 2.5, 2.7), read(ONE, 3.1, 3.9), read(None, 4.5, 5.5)]
    # What nobody knows may have happened, and may still.
    found = reading(writes, *reads, read(OTHER, 5.5, 5.7), read(None, 7, 8), read(OTHER, 9, 10))
    assert found.wrong(staleness=0) == []
    assert (found.acknowledged, found.unknown, found.reads) == (2, 1, 8)


@pytest.mark.parametrize(
    ("late", "staleness"),
    [
        (read(None, 3, 3.5), 1.0),  # the addition was acknowledged before
        (read(ONE, 6, 6.5), 1.0),  # and overwritten
        (read(None, 6, 6.5), 4.0),  # by another one
    ],
)
def test_a_read_that_misses_what_was_acknowledged_is_stale(late: Read, staleness: float) -> None:
    found = reading([write("a", ONE, 1, 2), write("b", OTHER, 4, 5)], late)
    assert (found.stale, found.longest_staleness) == (1, staleness)
    assert found.wrong(staleness=0) == ["1 stale"]
    assert found.wrong(staleness=5) == []


def test_of_writes_at_the_same_time_either_may_be_the_last() -> None:
    writes = [write("a", ONE, 1, 4), write("b", OTHER, 2, 3)]
    assert reading(writes, read(ONE, 5, 6), read(OTHER, 5, 6)).wrong(staleness=0) == []
    assert reading(writes, read(None, 5, 6)).stale == 1


def test_what_has_expired_is_gone_from_then_on() -> None:
    soon = 10_000_000  # the tenth second
    writes = [write("a", soon, 1, 2)]
    assert reading(writes, read(soon, 9, 9.5), read(None, 10.1, 11)).wrong(staleness=0) == []
    assert reading(writes, read(None, 7, 8)).stale == 1
    late = reading(writes, read(soon, 12, 13))
    assert (late.stale, late.longest_staleness) == (1, 2.0)


def test_what_ends_early_is_counted_by_itself() -> None:
    found = reading([write("a", 10_000_000, 1, 2)], read(None, 9, 9.75), read(None, 9.8, 9.999))
    assert (found.early, found.longest_early, found.stale) == (1, 0.25, 0)
    # Another one that is there since makes no difference to what had been overwritten.
    assert reading([write("a", 10_000_000, 1, 2), write("b", ONE, 3, 4)], read(None, 9, 9.75)).stale == 1


def test_what_nobody_wrote_is_never_right() -> None:
    assert reading([write("a", ONE, 1, 2)], read(OTHER, 3, 4)).wrong(staleness=60) == ["1 unexplained"]
    assert reading([write("a", ONE, 5, 6)], read(ONE, 3, 4)).unexplained == 1
    assert reading([write("a", ONE, 1, 2, FAIL)], read(ONE, 3, 4)).unexplained == 1


def test_an_acknowledged_write_that_is_not_there_is_lost() -> None:
    writes = [write("a", ONE, 1, 2), write("b", OTHER, 3, 4)]
    whole = final_of(*writes)
    assert check(History(writes), whole).wrong(0) == []
    without = Final({"a": [0]}, whole.events[:1])
    assert check(History(writes), without).wrong(0) == ["1 lost"]
    assert check(History(writes), Final(whole.operations, whole.events[:1])).wrong(0) == ["1 lost"]
    overwritten = History(writes, last=[read(ONE, 9, 10)])
    assert check(overwritten, whole).wrong(0) == ["1 lost"]


def test_what_happened_twice_is_doubled_whatever_the_keys_say() -> None:
    writes = [write("a", ONE, 1, 2)]
    event = Event("u", 1, "ADDED", ONE, 0)
    again = replace(event, operation=1)
    assert check(History(writes), Final({"a": [0]}, [event, again])).doubled == 1
    assert check(History(writes), Final({"a": [0, 1]}, [event])).doubled == 1
    assert check(History(writes), Final({"a": [0]}, [event, replace(event, expires=OTHER)])).doubled == 2


def test_answers_to_one_key_that_differ_are_told() -> None:
    one = write("a", ONE, 1, 2)
    one.attempts += write("a", ONE, 3, 4, replayed=True).attempts
    assert check(History([one]), final_of(one)).wrong(0) == []
    one.attempts += write("a", ONE, 5, 6, replayed=True, added=[], unchanged=["S"]).attempts
    assert check(History([one]), final_of(one)).divergent == 1
    first_twice = write("b", ONE, 1, 2)
    first_twice.attempts *= 2
    assert check(History([first_twice]), final_of(first_twice)).divergent == 1


def test_what_others_have_found_counts() -> None:
    final = Final({}, [], differences=["a", "b"], leaks=["c"])
    found = check(History(), final, broken=["d"])
    assert found.wrong(0) == ["2 differences", "1 leaks", "1 broken"]
    assert found.examples == ["differences: a", "differences: b", "leaks: c", "broken: d"]


def test_the_longest_request_is_of_those_whose_process_was_there() -> None:
    excused = read(None, 0, 90)
    excused.attempt.excused = True
    assert check(History(reads=[read(None, 0, 3), excused]), NOTHING).longest_request == 3
