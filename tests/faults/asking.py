"""One request to one process, and what its answer means for whether it happened."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from faults.history import FOR_EVER, Attempt, Outcome
from faults.processes import Process

STORED = "added updated removed unchanged replayed userErrors { code message }"
FIELDS = {
    "changeUserSegments": ("ChangeUserSegmentsInput", STORED),
    "changeMemberships": ("ChangeMembershipsInput", STORED),
    "addUsersToSegment": ("AddUsersToSegmentInput", STORED),
    "removeUsersFromSegment": ("RemoveUsersFromSegmentInput", STORED),
    "createSegment": ("CreateSegmentInput", "segment { id } replayed userErrors { code message }"),
    "generateReport": ("GenerateReportInput", "task { id } replayed userErrors { code message }"),
    "importMembers": ("ImportMembersInput", "task { id } replayed userErrors { code message }"),
}
MUTATIONS = {
    field: f"mutation ($input: {kind}!, $key: String!) {{ {field}(input: $input, idempotencyKey: $key) {{ {what} }} }}"
    for field, (kind, what) in FIELDS.items()
} | {
    "deleteSegment": """mutation ($input: String!, $key: String!) {
        deleteSegment(slug: $input, idempotencyKey: $key) { segment { id } replayed userErrors { code message } } }""",
    "updateSegment": """mutation ($input: String!, $key: String!) {
        updateSegment(slug: $input, input: {description: "As before."}, idempotencyKey: $key) {
            segment { id } replayed userErrors { code message } } }""",
}
READ = """query ($id: ID!, $freshness: Freshness!) {
    user(id: $id) { memberships(freshness: $freshness) { segment { slug } expiresAt } } }"""
EPOCH, MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
# The key is at work: it may yet happen.
AT_WORK = "IDEMPOTENCY_IN_PROGRESS"
# Our own mistakes, which no fault explains.
MISTAKES = {"GRAPHQL_PARSE_FAILED", "GRAPHQL_VALIDATION_FAILED", "BAD_USER_INPUT", "IDEMPOTENCY_KEY_REUSED"}


async def mutate(process: Process, field: str, input: object, key: str) -> Attempt:
    attempt = await ask(process, MUTATIONS[field], {"input": input, "key": key})
    if attempt.outcome is Outcome.OK and attempt.payload is not None:
        payload = attempt.payload[field]
        refusals = [error["code"] for error in payload.pop("userErrors")]
        attempt.payload, attempt.error = payload, " ".join(refusals)
        if refusals:
            attempt.outcome = Outcome.UNKNOWN if AT_WORK in refusals else Outcome.FAIL
    assert not MISTAKES & set(attempt.error.split()), (attempt.error, field, input)
    return attempt


async def read(process: Process, user: str, *, latest: bool = False) -> tuple[Attempt, dict[str, int] | None]:
    """And by slug when the membership expires; None when nobody answered."""
    variables = {"id": user, "freshness": "LATEST" if latest else "CACHED"}
    attempt = await ask(process, READ, variables)
    if attempt.payload is None:
        return attempt, None
    found = attempt.payload["user"]["memberships"]
    return attempt, {each["segment"]["slug"]: microseconds(each["expiresAt"]) for each in found}


async def ask(process: Process, query: str, variables: Mapping[str, Any]) -> Attempt:
    began, payload, error = time.time(), None, ""
    try:
        response = await process.http.post("/graphql", json={"query": query, "variables": variables})
        answer = response.json()
        if "errors" in answer or "data" not in answer:
            errors = answer.get("errors", [])
            error = " ".join(each["extensions"]["code"] for each in errors) or f"status {response.status_code}"
            outcome = Outcome.UNKNOWN
        else:
            payload, outcome = answer["data"], Outcome.OK
    except httpx.ConnectError as refused:
        error, outcome = f"not connected: {refused}", Outcome.FAIL
    except (httpx.HTTPError, RuntimeError, ValueError) as lost:  # RuntimeError: its process is just being replaced
        error, outcome = f"lost: {type(lost).__name__}", Outcome.UNKNOWN
    ended = time.time()
    return Attempt(process.number, began, ended, outcome, payload, error, process.is_excused(began, ended))


def microseconds(instant: str | None) -> int:
    return FOR_EVER if instant is None else (datetime.fromisoformat(instant) - EPOCH) // MICROSECOND


def instant(microseconds_: int) -> str:
    return (EPOCH + microseconds_ * MICROSECOND).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
