"""What Schemathesis asks, and what it takes for an answer: the service knows what to say, whatever it is asked."""

import itertools
import json
import re
from typing import Any
from zlib import crc32

import schemathesis

# What callers are told of requests that fit the schema, or nearly. Every other code means that something has failed, or
# that more was refused than these requests deserve.
EXPECTED = frozenset({"BAD_USER_INPUT", "GRAPHQL_VALIDATION_FAILED", "GRAPHQL_PARSE_FAILED", "LIMIT_EXCEEDED"})
# A schema does not say how large a page may be, or how a key looks: hardly anything drawn by it alone gets past that.
STRING = r'"(?:[^"\\]|\\.)*"'
ARGUMENTS = re.compile(rf"\b(first): -?\d+|\b(idempotencyKey): {STRING}|\b(slug): {STRING}")
# One in so many stays as it was drawn.
AS_DRAWN = 4
_keys = itertools.count(1)


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    if isinstance(case.body, str) and crc32(case.body.encode(errors="replace")) % AS_DRAWN:
        case.body = ARGUMENTS.sub(_usable, case.body)


@schemathesis.check
def answered(context: Any, response: Any, case: Any) -> None:
    """Whatever it was, it is answered, and what is wrong with it is the caller's."""
    assert response.status_code == 200, f"the status is {response.status_code}"
    errors = json.loads(response.content).get("errors", ())
    codes = {error.get("extensions", {}).get("code") for error in errors}
    assert codes <= EXPECTED, f"it is refused as {', '.join(map(str, codes - EXPECTED))}"


def _usable(found: re.Match[str]) -> str:
    first, key, _slug = found.groups()
    drawn = crc32(found[0].encode(errors="replace"))
    if first:
        return f"first: {drawn % 100 + 1}"
    if key:
        return f'idempotencyKey: "fuzzed-{drawn}-{next(_keys)}"'
    return f'slug: "{"ABCDEFGH"[drawn % 8]}"'
