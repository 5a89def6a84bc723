"""Every request: its id, its line in the log, and its part in the metrics."""

import logging
import random
import re
from time import perf_counter
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from resolvers import facts, links
from resolvers.facts import Facts
from server import metrics
from server.graphql import PATH
from server.leaving import Leaving
from server.logs import FIELDS

log = logging.getLogger(__name__)
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
FAILURES = frozenset({"INTERNAL_SERVER_ERROR", "OVERLOADED", "TIMEOUT"})
PATH_CHARACTERS = 200
HEALTH = frozenset({"/healthz", "/readyz"})
STATIC = "/graphiql/"


class RequestLog:
    """Notes what became of each request; and while the process is leaving, tells callers that their connection ends."""

    def __init__(self, app: ASGIApp, slow_ms: int, leaving: Leaving) -> None:
        self.app = app
        self._slow_ms = slow_ms
        self._leaving = leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        noted = scope.setdefault("state", {})["facts"] = facts.begin()
        scope["state"]["leaving"] = self._leaving
        noted.request_id = request_id = _request_id(scope)
        status, size = 0, 0

        async def watched(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                more = [(b"x-request-id", request_id.encode())]
                if self._leaving.begun:
                    more.append((b"connection", b"close"))
                message["headers"] = [*message.get("headers", ()), *more]
            else:
                size += len(message.get("body", b""))
            await send(message)

        began = perf_counter()
        metrics.open_requests.value += 1
        try:
            await self.app(scope, receive, watched)
        except Exception:
            # Starlette answers it, outside of us.
            status = status or 500
            raise
        finally:
            metrics.open_requests.value -= 1
            if not noted.concluded:
                conclude(noted, scope["method"], scope["path"], status, perf_counter() - began, size, self._slow_ms)


def conclude(noted: Facts, method: str, path: str, status: int, seconds: float, size: int, slow_ms: int) -> None:
    """Count and log a request that has come to its end, or a subscription that has begun."""
    noted.concluded = True
    noted.outcome = _outcome(noted, status)
    route = _route(path)
    metrics.count_request(route, method, status)
    if route == PATH:
        metrics.count_operation(noted, status, seconds)
    slow = seconds * 1000 >= slow_ms
    if route in HEALTH or route == STATIC:
        level = logging.DEBUG
    else:
        level = logging.WARNING if slow or status >= 500 else logging.INFO  # noqa: PLR2004  # HTTP's own number
    if log.isEnabledFor(level):
        message = "slow request" if slow else "request"
        log.log(level, message, extra={FIELDS: _fields(noted, method, path, status, seconds, size)})


def is_logged(seconds: float, slow_ms: int) -> bool:
    """Whether a right answer has a line in the log."""
    return log.isEnabledFor(logging.INFO) or (seconds * 1000 >= slow_ms and log.isEnabledFor(logging.WARNING))


def _fields(noted: Facts, method: str, path: str, status: int, seconds: float, size: int) -> dict[str, Any]:
    """Neither the query string, for it may be a signature or variables, nor any header."""
    fields: dict[str, Any] = {
        "method": method,
        "path": path[:PATH_CHARACTERS],
        "status": status,
        "duration_ms": round(seconds * 1000, 1),
        "bytes": size,
        "outcome": noted.outcome,
    }
    for name in ("code", "operation", "kind", "document", "client", "cost"):
        if (value := getattr(noted, name)) is not None:
            fields[name] = value
    if noted.kind is not None:
        fields["cache_hits"], fields["cache_misses"] = noted.cache_hits, noted.cache_misses
        fields["statements"] = noted.statements
    if noted.replayed:
        fields["replayed"] = True
    return fields


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(value):
            given: str = value.decode()
            return given
    return new_id()


def new_id() -> str:
    return f"{random.getrandbits(64):016x}"  # it tells requests apart, and opens nothing


def _outcome(noted: Facts, status: int) -> str:
    if status == 0:
        return "left"
    if status >= 500 or noted.code in FAILURES:  # noqa: PLR2004  # HTTP's own number
        return "failed"
    return "refused" if noted.code is not None or status >= 400 else "ok"  # noqa: PLR2004  # likewise


def _route(path: str) -> str:
    """A caller chooses the path: of what it may be there are few."""
    if path == PATH or path in HEALTH:
        return path
    for beginning in (links.PATH, STATIC):
        if path.startswith(beginning):
            return beginning
    return "other"
