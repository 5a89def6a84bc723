"""What was asked of the service, when, and what it answered: all that the checker sees of it."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

# A user and a slug: they hold one value, which is when the membership expires, in microseconds, or that there is none.
Register = tuple[str, str]
Value = int | None
# A membership without an end.
FOR_EVER = 2**62


class Outcome(StrEnum):
    OK = "ok"
    # It was refused, or never sent: it did nothing.
    FAIL = "fail"
    # Nobody answered, or with an error: it may have happened, or may still.
    UNKNOWN = "unknown"


@dataclass(slots=True)
class Attempt:
    """One request. Instants are seconds since 1970, of the clock that the database has, too."""

    server: int
    invoked: float
    completed: float
    outcome: Outcome
    # What a mutation answered, or the data of a query.
    payload: dict[str, Any] | None = None
    # What it answered instead.
    error: str = ""
    # Whether its process was frozen or cut off while it lasted: then it was nobody's to end it.
    excused: bool = False

    @property
    def seconds(self) -> float:
        return self.completed - self.invoked


@dataclass(slots=True)
class Write:
    """A mutation, and every attempt at it with its key."""

    key: str
    # The mutation's field.
    kind: str
    sets: dict[Register, Value]
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def outcome(self) -> Outcome:
        outcomes = {attempt.outcome for attempt in self.attempts} or {Outcome.UNKNOWN}
        return next((each for each in (Outcome.OK, Outcome.UNKNOWN) if each in outcomes), Outcome.FAIL)

    @property
    def invoked(self) -> float:
        return min(attempt.invoked for attempt in self.attempts)

    @property
    def completed(self) -> float:
        """When it was there for everybody to see: at its first acknowledgement; if there was none, perhaps never."""
        return min((each.completed for each in self.attempts if each.outcome is Outcome.OK), default=float("inf"))

    def answers(self) -> list[dict[str, Any]]:
        return [each.payload for each in self.attempts if each.outcome is Outcome.OK and each.payload is not None]


@dataclass(slots=True)
class Read:
    user: str
    attempt: Attempt
    # By slug, when the membership expires; None when nobody answered.
    found: dict[str, int] | None
    latest: bool = False


@dataclass(slots=True)
class History:
    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    # What everybody was in at the end, read from PostgreSQL when nothing was under way any more.
    last: list[Read] = field(default_factory=list)

    def attempts(self) -> list[Attempt]:
        return [each for write in self.writes for each in write.attempts] + [read.attempt for read in self.reads]
