"""Puts the users of a file into a segment, in chunks that happen once, however often this is cut off or run again.

python batch.py URL SEGMENT FILE JOB [CHUNK]: the file has one user id on each line. JOB names the work and its day,
such as `discount-2026-11-23`. Run again with the same JOB within a day, it changes nothing and prints the same totals.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

from gql import Client, GraphQLRequest, gql
from gql.transport.exceptions import TransportConnectionFailed, TransportError, TransportQueryError
from gql.transport.httpx import HTTPXTransport

ADD = gql("""
    mutation ($input: AddUsersToSegmentInput!, $key: String!) {
      addUsersToSegment(input: $input, idempotencyKey: $key) {
        added updated unchanged replayed userErrors { code path message }
      }
    }
""")
# Users of one request. Each holds up the segment's other changes for as long as it takes.
MOST = 50_000
COUNTS = ("added", "updated", "unchanged", "replayed")
# Either nothing happened or the key knows what did. Whatever has another code is refused each time.
PASSING = {"OVERLOADED", "TIMEOUT", "RATE_LIMITED", "IDEMPOTENCY_IN_PROGRESS"}
PASSING |= {"NO_ANSWER", "HTTP_429", "HTTP_500", "HTTP_502", "HTTP_503", "HTTP_504"}
# The waits between them are one to two minutes together: by then a database that fails over is back.
ATTEMPTS, FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 10, 0.5, 30.0
# Longer than the service takes for anything, so that its own answer comes first.
TIMEOUT_SECONDS = 60


def ask(transport: HTTPXTransport, variables: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """What became of a chunk, and what was wrong: codes with messages."""
    transport.response_headers = None  # those of an earlier answer say nothing about this one
    try:
        answer = Client(transport=transport).execute_sync(GraphQLRequest(ADD, variable_values=variables))
    except TransportConnectionFailed as error:
        return {}, [("NO_ANSWER", str(error))]
    except TransportQueryError as error:
        return {}, [(e.get("extensions", {}).get("code", "UNKNOWN"), e["message"]) for e in error.errors or ()]
    except TransportError as error:  # it is no GraphQL: something in between has answered
        return {}, [(f"HTTP_{getattr(error, 'code', 200)}", str(error))]
    payload = answer["addUsersToSegment"]
    return payload, [(e["code"], f"{'.'.join(e['path'])}: {e['message']}") for e in payload["userErrors"]]


def insist(transport: HTTPXTransport, variables: dict[str, Any]) -> dict[str, Any]:
    """What became of a chunk. Ends the program when it is refused, or there is no answer to be had."""
    for attempt in range(ATTEMPTS):
        payload, errors = ask(transport, variables)
        if not errors:
            return payload
        print(*(f"{code} {message}" for code, message in errors), sep="\n", file=sys.stderr)
        if not all(code in PASSING for code, _ in errors):
            sys.exit(f"Stopped at {variables['key']}: asking again would not help. The chunks before it are done.")
        if attempt < ATTEMPTS - 1:
            wait = min(FIRST_WAIT_SECONDS * 2**attempt, LONGEST_WAIT_SECONDS)
            told = (transport.response_headers or {}).get("Retry-After", "")
            # Not at the same moment as every other client, and not before we were told to.
            time.sleep(max(wait * random.uniform(0.5, 1), int(told) if told.isdecimal() else 0))
    sys.exit(f"Given up at {variables['key']} after {ATTEMPTS} attempts. Run this again with the same JOB.")


def main() -> None:
    arguments = argparse.ArgumentParser(description="Put the users of a file into a segment.")
    for name in ("url", "segment", "file", "job"):
        arguments.add_argument(name)
    arguments.add_argument("chunk", nargs="?", type=int, default=MOST, help="users of one request")
    given = arguments.parse_args()
    if not 1 <= given.chunk <= MOST:
        arguments.error(f"chunk must be from 1 to {MOST}")
    user_ids = [line for line in Path(given.file).read_text("utf-8-sig").split("\n") if line]
    transport = HTTPXTransport(given.url, timeout=TIMEOUT_SECONDS)
    totals = dict.fromkeys(("chunks", *COUNTS), 0)
    for start in range(0, len(user_ids), given.chunk):
        totals["chunks"] += 1
        variables = {
            "input": {"slug": given.segment, "userIds": user_ids[start : start + given.chunk]},
            "key": f"{given.job}/{totals['chunks']}",
        }
        payload = insist(transport, variables)
        for name in COUNTS:
            totals[name] += payload[name]
    print(json.dumps(totals))


if __name__ == "__main__":
    main()
