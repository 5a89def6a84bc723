"""The scalars of the contract, as strict as it says."""

import re
from datetime import UTC, datetime

import strawberry
from graphql import GraphQLError

# RFC 3339 with an offset: nothing is guessed, and no digit that was sent is dropped.
INSTANT = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d{1,6})?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)", re.ASCII)
WHAT = (
    "A DateTime is RFC 3339 with an offset and at most 6 digits of a second, like 2026-02-01T09:30:00Z or "
    "2026-02-01T12:30:00.25+03:00."
)


# The database's driver means `infinity` by it.
TAKEN = datetime.max.replace(tzinfo=UTC)
# Beyond it a JSON number may stand for several.
LARGEST = 2**53


def parse_instant(value: object) -> datetime:
    if not isinstance(value, str) or not INSTANT.fullmatch(value):
        raise GraphQLError(WHAT)
    try:
        instant = datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        instant = TAKEN
    if instant == TAKEN:
        raise GraphQLError(f"There is no such instant. {WHAT}")
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


class BigInt(int):
    """What a field's type says where a number may be larger than GraphQL's Int."""


BIG_INT = strawberry.scalar(
    name="BigInt",
    description="A whole number up to 2^53, sent as a JSON number.",
    serialize=int,
    parse_value=parse_big_int,
)
