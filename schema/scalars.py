"""The scalars of the contract, as strict as it says."""

from datetime import UTC, datetime

import strawberry
from graphql import GraphQLError

from db import clock

WHAT = (
    "A DateTime is RFC 3339 with an offset and at most 6 digits of a second, like 2026-02-01T09:30:00Z or "
    "2026-02-01T12:30:00.25+03:00."
)


# Beyond it a JSON number may stand for several.
LARGEST = 2**53


def parse_instant(value: object) -> datetime:
    try:
        instant = clock.parse_instant(value) if isinstance(value, str) else None
    except OverflowError as error:
        raise GraphQLError(f"There is no such instant. {WHAT}") from error
    if instant is None:
        raise GraphQLError(WHAT)
    return instant


def print_instant(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def parse_big_int(value: object) -> int:
    # A JSON number may say that it is whole and be written with a point. True is a number to Python alone.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > LARGEST:
        raise GraphQLError("A BigInt is a whole number from -2^53 to 2^53.")
    return value


DateTime = strawberry.scalar(
    name="DateTime",
    description=(
        "An instant: RFC 3339 with an explicit offset on input (a date alone or a time without offset is refused), UTC "
        "with Z on output. Microseconds are kept; more digits of a second are refused."
    ),
    specified_by_url="https://www.rfc-editor.org/rfc/rfc3339",
    serialize=print_instant,
    parse_value=parse_instant,
)


BIG_INT = strawberry.scalar(
    name="BigInt",
    description="A whole number up to 2^53, sent as a JSON number.",
    serialize=int,
    parse_value=parse_big_int,
)
