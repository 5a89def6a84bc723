"""GraphQL over HTTP, asked until there is an answer or patience ends."""

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import httpx

Json = dict[str, Any]
Answer = TypeVar("Answer")

# Longer than an operation may take on a server that is set as it comes.
SECONDS = httpx.Timeout(30, connect=10)
# The first pause is drawn from up to so many seconds, each that follows from up to twice as many.
FIRST_PAUSE = 0.5
# So many pauses fit into all patience at least: 20 seconds into five minutes.
PAUSES = 15
# Of a longer attempt no more is counted: a transfer that breaks after an hour has not been waited for in vain.
LONGEST_ATTEMPT = 30.0
WORTH_ANOTHER_TRY = frozenset({"OVERLOADED", "TIMEOUT", "RATE_LIMITED"})
IN_PROGRESS = "IDEMPOTENCY_IN_PROGRESS"


class Failed(Exception):
    """Why a command has no result: one line for a person."""


class Refused(Exception):  # an answer, not an error
    """What the caller got wrong, as the server says it; nothing has happened."""

    def __init__(self, errors: list[Json]) -> None:
        super().__init__(
            "\n".join(f"{error['code']}: {error['message']} ({'.'.join(error['path'])})" for error in errors)
        )


class Again(Exception):
    """Why there is no answer yet, and how many seconds to wait at least."""

    def __init__(self, why: str, after: float = 0) -> None:
        super().__init__(why)
        self.after = after


@dataclass(frozen=True, slots=True)
class Patience:
    # How long to go on without success.
    seconds: float
    say: Callable[[str], None]

    def persist(self, attempt: Callable[[], Answer]) -> Answer:
        """What the attempt returns, once it no longer raises Again."""
        spent, pause, said = 0.0, min(FIRST_PAUSE, self.seconds / PAUSES), ""
        while True:
            began = time.monotonic()
            try:
                return attempt()
            except Again as again:
                spent += min(time.monotonic() - began, LONGEST_ATTEMPT)
                left = self.seconds - spent
                if left <= again.after:
                    raise Failed(f"{again} Given up after {spent:.0f} s.") from again
                if str(again) != said:
                    said = str(again)
                    self.say(f"{said} Trying again for up to {left:.0f} s.")
                # Drawn from the whole range, so that clients that were cut off together do not come back together.
                wait = again.after + min(random.uniform(0, pause), left - again.after)  # noqa: S311  # not a secret
                time.sleep(wait)
                spent += wait
                pause = min(2 * pause, self.seconds / PAUSES)


@dataclass(frozen=True, slots=True)
class Api:
    """A server's GraphQL endpoint, and those who know how to reach it."""

    http: httpx.Client
    url: str
    # It goes to the endpoint alone: links to files are good by themselves, and lead anywhere.
    token: str | None
    patience: Patience

    def ask(self, query: str, **variables: object) -> Json:
        """The `data` of a query."""
        return self.patience.persist(lambda: self._post(query, variables))

    def mutate(self, mutation: str, **variables: object) -> Json:
        """The payload of the mutation, which has a key among its variables. Raises Refused if it has userErrors."""

        def attempt() -> Json:
            payload: Json
            (payload,) = self._post(mutation, variables).values()
            errors: list[Json] = payload["userErrors"]
            if any(error["code"] == IN_PROGRESS for error in errors):
                raise Again("The same command is at work already.")
            if errors:
                raise Refused(errors)
            return payload

        return self.patience.persist(attempt)

    def _post(self, document: str, variables: Json) -> Json:
        # Of this media type every answer of GraphQL has status 200; others come from something else on the way.
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        # As ASCII, so that what a shell has that is no text still gets there, to be refused.
        body = json.dumps({"query": document, "variables": variables})
        try:
            answer = self.http.post(self.url, content=body, headers=headers, timeout=SECONDS)
        except httpx.TransportError as error:
            raise unreachable(self.url, error) from error
        return self._data(answer)

    def _data(self, answer: httpx.Response) -> Json:
        check_status(self.url, answer)
        found = _json(answer)
        if errors := found.get("errors"):
            codes = {error.get("extensions", {}).get("code", "") for error in errors}
            said = "; ".join(f"{error['message']}" for error in errors)
            if codes & WORTH_ANOTHER_TRY:
                raise Again(f"{shown(self.url)} says: {said}", retry_after(answer))
            raise Failed(f"{shown(self.url)} says: {said} ({', '.join(sorted(codes))}){self._advice(codes)}")
        if answer.status_code != httpx.codes.OK or not isinstance(data := found.get("data"), dict):
            status = f"answered with status {answer.status_code}"
            raise Failed(f"{shown(self.url)} {status}, and not as a GraphQL server does.")
        return data

    def _advice(self, codes: set[str]) -> str:
        if "UNAUTHENTICATED" in codes:
            return " Is the token in SEGMENTQL_TOKEN still good?" if self.token else " Put one into SEGMENTQL_TOKEN."
        return " The token in SEGMENTQL_TOKEN may do less." if "FORBIDDEN" in codes else ""


def unreachable(url: str, error: httpx.TransportError) -> Again:
    """Worth another try, unless it was never sent."""
    if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
        raise Failed(f"Nothing can be sent to {shown(url)}: {error}.") from error
    return Again(f"{shown(url)} did not answer: {str(error).rstrip('.') or type(error).__name__}.")


def check_status(url: str, answer: httpx.Response) -> None:
    """Raise Again where the status says that somebody is busy."""
    busy = (httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS)
    if answer.is_server_error or answer.status_code in busy:
        raise Again(f"{shown(url)} answered with status {answer.status_code}.", retry_after(answer))


def retry_after(answer: httpx.Response) -> float:
    """Seconds that the server asks for: it may say how many, or until when."""
    value = answer.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return 0
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def shown(url: str) -> str:
    """Without what opens doors: a password, or a link's signature."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def _json(answer: httpx.Response) -> Json:
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
