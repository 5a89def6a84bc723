"""A row of the table: a fault that strikes again and again, and what may come of it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from faults.load import Load
from faults.stack import Stack

# Injects the fault, lets it last, and ends it.
Strike = Callable[[Stack, Load], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    what: str
    strike: Strike
    # What it begins with and ends with, once for all repetitions.
    before: Strike | None = None
    after: Strike | None = None
    # How stale a read may be: nowhere, but where Redis cannot be told.
    staleness: float = 0.0
    settings: Mapping[str, str] = field(default_factory=dict)
    postgres_options: Mapping[str, str] = field(default_factory=dict)
    valkey_options: Sequence[str] = ()


ROWS: dict[str, Row] = {}


def row(name: str, what: str, **rest: object) -> Callable[[Strike], Strike]:
    """Make a row of the function that strikes."""

    def made(strike: Strike) -> Strike:
        assert name not in ROWS, name
        ROWS[name] = Row(name, what, strike, **rest)  # type: ignore[arg-type]  # Row itself refuses what it has not
        return strike

    return made
