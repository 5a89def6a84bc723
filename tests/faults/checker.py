"""Whether what was answered can be true: pure code over the history and what the database holds at the end."""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from faults.history import FOR_EVER, History, Outcome, Read, Register, Value, Write

# An instant that the application estimates is at most so much off the database's own (decision 0006).
CLOCK_SECONDS = 0.005
# While the machine is busy a look at that clock takes longer, and the estimate is off by as much: a membership may be
# seen to end so much early, and never late. That is counted by itself.
EARLY_SECONDS = 1.0
COUNTED = ("added", "updated", "removed")
# Of each kind of finding, so many are told.
EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Event:
    user: str
    segment: int
    action: str
    expires: Value
    operation: int | None


@dataclass(frozen=True, slots=True)
class Final:
    """What the database holds when everything has come to rest."""

    # By idempotency key, the operations that have it.
    operations: Mapping[str, Sequence[int]]
    events: Sequence[Event]
    # What `segmentql verify` finds, and what is still held that nobody uses.
    differences: Sequence[str] = ()
    leaks: Sequence[str] = ()


@dataclass(slots=True)
class Findings:
    operations: int = 0
    acknowledged: int = 0
    failed: int = 0
    unknown: int = 0
    reads: int = 0
    # Acknowledged writes of which there is no trace, or less than was answered.
    lost: int = 0
    doubled: int = 0
    divergent: int = 0
    stale: int = 0
    longest_staleness: float = 0.0
    # Reads that saw a membership end before its end.
    early: int = 0
    longest_early: float = 0.0
    # Reads of what nobody ever wrote, or not yet.
    unexplained: int = 0
    differences: int = 0
    leaks: int = 0
    # What a fault itself looks at beside all this: a report that was published twice, say.
    broken: int = 0
    longest_request: float = 0.0
    examples: list[str] = field(default_factory=list)

    def tell(self, kind: str, example: str) -> None:
        setattr(self, kind, getattr(self, kind) + 1)
        if sum(each.startswith(kind) for each in self.examples) < EXAMPLES:
            self.examples.append(f"{kind}: {example}")

    def wrong(self, staleness: float) -> list[str]:
        """Which promises were broken, where reads may be stale for so many seconds."""
        kinds = ["lost", "doubled", "divergent", "unexplained", "differences", "leaks", "broken"]
        if self.longest_staleness > staleness:
            kinds.append("stale")
        return [f"{getattr(self, kind)} {kind}" for kind in kinds if getattr(self, kind)]


def check(history: History, final: Final, broken: Sequence[str] = ()) -> Findings:
    findings = Findings(operations=len(history.writes) + len(history.reads), reads=len(history.reads))
    outcomes = Counter(write.outcome for write in history.writes)
    findings.acknowledged, findings.failed = outcomes[Outcome.OK], outcomes[Outcome.FAIL]
    findings.unknown = outcomes[Outcome.UNKNOWN]
    findings.longest_request = max((each.seconds for each in history.attempts() if not each.excused), default=0)
    _check_writes(history.writes, final, findings)
    _check_events(final.events, findings)
    registers = _registers(history.writes)
    slugs = {slug for _, slug in registers}
    for read in history.reads:
        for example, staleness in _wrong(read, registers, slugs):
            if staleness is not None and staleness < 0:
                findings.tell("early", example)
                findings.longest_early = max(findings.longest_early, -staleness)
                continue
            findings.tell("unexplained" if staleness is None else "stale", example)
            findings.longest_staleness = max(findings.longest_staleness, staleness or 0)
    for read in history.last:
        for example, _ in _wrong(read, registers, slugs):
            findings.tell("lost", f"at the end {example}")
    for kind, examples in (("differences", final.differences), ("leaks", final.leaks), ("broken", broken)):
        for example in examples:
            findings.tell(kind, example)
    return findings


def _check_writes(writes: Sequence[Write], final: Final, findings: Findings) -> None:
    caused = Counter(event.operation for event in final.events if event.action != "SEGMENT_DELETED")
    for write in writes:
        operations, answers = final.operations.get(write.key, ()), write.answers()
        for _ in operations[1:]:
            findings.tell("doubled", f"{write.key} has {len(operations)} operations")
        if not answers:
            continue
        if not operations:
            findings.tell("lost", f"{write.key} was acknowledged, and is not there")
        elif (counted := _counted(answers[0])) is not None:
            happened = sum(caused[operation] for operation in operations)
            if happened != counted:
                kind = "lost" if happened < counted else "doubled"
                findings.tell(kind, f"{write.key} answered {counted} changes, and has {happened}")
        if len({repr(_lasting(answer)) for answer in answers}) > 1:
            findings.tell("divergent", f"{write.key}: {answers}")
        if sum(not answer["replayed"] for answer in answers) > 1:
            findings.tell("divergent", f"{write.key} was answered twice as if it were the first time")


def _counted(answer: Mapping[str, Any]) -> int | None:
    """How many changes the answer says there were; None where it does not say."""
    if not set(COUNTED) <= answer.keys():
        return None
    return sum(each if isinstance(each, int) else len(each) for each in map(answer.get, COUNTED) if each is not None)


def _lasting(answer: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What every answer to a key has in common."""
    return sorted((name, value) for name, value in answer.items() if name != "replayed")


def _check_events(events: Sequence[Event], findings: Findings) -> None:
    # Every addition has an expiry of its own, so an event says which one it is of, whatever the keys say.
    of_value = Counter(
        (event.user, event.segment, event.expires)
        for event in events
        if event.expires is not None and event.expires != FOR_EVER
    )
    of_operation = Counter(
        (event.user, event.segment, event.operation) for event in events if event.operation is not None
    )
    for what, times in (*of_value.items(), *of_operation.items()):
        for _ in range(times - 1):
            findings.tell("doubled", f"{times} events of {what}")


class _Values:
    """What one register was told to hold, by whom and when."""

    def __init__(self, writes: Sequence[Write], register: Register) -> None:
        spans = [(write.invoked, write.completed, write.sets[register]) for write in writes]
        # Nothing was there before the first.
        spans.append((float("-inf"), float("-inf"), None))
        self.writers = {value: (invoked, completed) for invoked, completed, value in spans if value is not None}
        self.enders = [(invoked, completed) for invoked, completed, value in spans if value is None]
        # What has expired is gone, too.
        self.expiring = [
            (value / 1e6, *span) for value, span in self.writers.items() if value != FOR_EVER and value < 3e15
        ]
        acknowledged = sorted((completed, invoked) for invoked, completed, _ in spans if completed != float("inf"))
        self._completed = [completed for completed, _ in acknowledged]
        self._begun = list(accumulate((invoked for _, invoked in acknowledged), max))

    def since(self, instant: float) -> float:
        """What was complete before this was overwritten, for all who ask from the instant on."""
        number = bisect_left(self._completed, instant)
        return self._begun[number - 1] if number else float("-inf")

    def overwritten(self, completed: float) -> float:
        """When that which was complete then was overwritten, to everybody's knowledge."""
        return next(
            (at for at, begun in zip(self._completed, self._begun, strict=True) if begun > completed), float("inf")
        )


Registers = dict[Register, _Values]


def _registers(writes: Sequence[Write]) -> Registers:
    found: dict[Register, list[Write]] = defaultdict(list)
    for write in writes:
        if write.outcome is not Outcome.FAIL:
            for register in write.sets:
                found[register].append(write)
    return {register: _Values(each, register) for register, each in found.items()}


def _wrong(read: Read, registers: Registers, slugs: set[str]) -> Iterator[tuple[str, float | None]]:
    """What a read cannot have found: why not, and for how long it had not been so; None if it never was, and less than
    zero if it was about to be.
    """
    if read.found is None:
        return
    invoked, completed = read.attempt.invoked, read.attempt.completed
    for slug in slugs | read.found.keys():
        value, values = read.found.get(slug), registers.get((read.user, slug))
        if values is None:
            if value is not None:
                yield f"{read.user} is in {slug}, where nobody has put them", None
            continue
        said = f"server {read.attempt.server} said of {read.user} in {slug}: {value} (asked at {invoked:.3f})"
        if value is not None and value != FOR_EVER and value / 1e6 < invoked - CLOCK_SECONDS:
            yield f"{said}, which had expired", invoked - value / 1e6
            continue
        writers = _candidates(values, value, completed)
        since = values.since(invoked)
        if any(complete >= since for _, complete in writers):
            continue
        early = [at - completed for at, _, complete in values.expiring if complete >= since and at > completed]
        if value is None and min(early, default=EARLY_SECONDS) < EARLY_SECONDS:
            yield f"{said}, which ended {min(early):.3f} s later", -min(early)
        elif not writers:
            yield f"{said}, which nobody had written", None
        else:
            overwritten = values.overwritten(max(complete for _, complete in writers))
            yield f"{said}, overwritten at {overwritten:.3f}", invoked - overwritten


def _candidates(values: _Values, value: Value, completed: float) -> list[tuple[float, float]]:
    """The writes, from when to when, that a read which ended then may have found."""
    if value is not None:
        span = values.writers.get(value)
        return [span] if span is not None and span[0] <= completed else []
    expired = [(begun, ended) for at, begun, ended in values.expiring if at <= completed + CLOCK_SECONDS]
    return [span for span in values.enders if span[0] <= completed] + expired
