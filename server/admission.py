"""Who is let in: nobody beyond so many at a time, and nobody who has spent all points. Nothing is done for them.

The places are this process's own. They protect it, and PostgreSQL behind it, also while Redis is away.
"""

from collections import Counter
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from http import HTTPStatus
from math import ceil

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from db.clock import ticks
from db.limiter import Limiter, Policy, Verdict
from db.recent import Recent
from resolvers import facts
from resolvers.callers import ANONYMOUS, Caller
from resolvers.errors import LimitExceeded, Overloaded, RateLimited
from server.addresses import neighbourhood
from server.graphql import PATH, refusal, wants_page
from server.middleware import lingering
from server.settings import Settings

# Buckets known to be empty; of forgotten ones the limiter knows.
EMPTY_ONES = 10_000
RETRY_MS = 1_000
# What a request costs that is refused once it was looked at, besides what it took to read it.
REFUSED_POINTS = 1
# What a body costs: a point for each so many bytes.
BYTES = 2**18


@dataclass(frozen=True, slots=True)
class Emptied:
    """What is known of a bucket without a single point, by `ticks`."""

    # When there will be one.
    until: float
    # When there will be as many as were asked for last: whoever is refused without a look probably wants them again.
    again: float
    full: float


Empty = Recent[str, Emptied]


@dataclass(slots=True)
class Bill:
    """What one request pays with, and what it has paid."""

    bucket: str
    limiter: Limiter
    # None: everything is free.
    policy: Policy | None
    empty: Empty
    # Bytes that were read of the body.
    body: int = 0
    # Points for a document that had to be parsed and validated.
    document: int = 0
    points: int | None = None
    verdict: Verdict | None = None

    async def pay(self, price: int) -> None:
        """Raises RateLimited when there are not enough points now, and LimitExceeded when there never will be.

        Whoever is told to come back has paid for being looked at, as far as there were points.
        """
        points = price + self._reading
        if self.policy is not None and points > self.policy.burst:
            raise LimitExceeded(f"The operation costs {points} points, and at most {self.policy.burst} can be spent.")
        await self._spend(points)

    async def settle(self) -> None:
        """Pay for a request that was refused before anybody knew what it would cost, as far as there are points."""
        if self.points is None:
            points = REFUSED_POINTS + self._reading
            with suppress(RateLimited):
                await self._spend(points if self.policy is None else min(points, self.policy.burst))

    @property
    def _reading(self) -> int:
        return self.body // BYTES + self.document

    async def _spend(self, points: int) -> None:
        self.points = facts.current().cost = points
        if self.policy is None:
            return
        before = ticks()
        fee = REFUSED_POINTS + self._reading
        verdict = self.verdict = await self.limiter.spend(self.bucket, points, self.policy, fee)
        if verdict.empty_us:
            # It was decided in between: nobody is refused for too long, or told to come back too early.
            after, again_us = ticks(), max(verdict.empty_us, verdict.again_us)
            self.empty.keep(
                self.bucket,
                Emptied(before + verdict.empty_us / 1e6, after + again_us / 1e6, after + verdict.reset_ms / 1e3),
            )
        else:
            self.empty.forget(self.bucket)
        if not verdict.allowed:
            raise RateLimited(verdict.retry_ms)


_current: ContextVar[Bill] = ContextVar("bill")


def current() -> Bill:
    """That of the request which is being answered."""
    return _current.get()


class Admission:
    """Lets requests for GraphQL in, or refuses them at once: nobody waits here."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self._policy = Policy(settings.rate_limit, settings.rate_burst) if settings.rate_limit else None
        self._most = settings.max_concurrent
        self._most_of_one = settings.max_concurrent_per_client
        # By bucket, and of all of them together.
        self._inside: Counter[str] = Counter()
        self._all = 0
        self._empty: Empty = Recent(EMPTY_ONES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != PATH or wants_page(request := Request(scope)):
            await self.app(scope, receive, send)
            return
        bucket = bucket_of(scope)
        if refused := self._refused(request, bucket):
            await refused(scope, receive, lingering(receive, send))
            return
        scope["state"]["payer"] = bucket
        scope["state"]["traffic"].note()
        self._inside[bucket] += 1
        self._all += 1
        try:
            await self._admit(Bill(bucket, scope["state"]["limiter"], self._policy, self._empty), scope, receive, send)
        finally:
            self._all -= 1
            self._inside[bucket] -= 1
            if not self._inside[bucket]:
                del self._inside[bucket]

    def _refused(self, request: Request, bucket: str) -> Response | None:
        """Who has no point, or finds no place, costs neither a look into the request nor one into Redis."""
        now, emptied = ticks(), self._empty.find(bucket)
        if self._policy is not None and emptied is not None and emptied.until > now:
            retry_ms = ceil((emptied.again - now) * 1_000)
            headers = _standing(self._policy, 0, ceil((emptied.full - now) * 1_000)) | _retry_after(retry_ms)
            error = RateLimited(retry_ms)
            return refusal(request, 429, str(error), headers, retryAfterMs=retry_ms)
        if self._all >= self._most or self._inside[bucket] >= self._most_of_one:
            return refusal(request, 503, str(Overloaded()), _retry_after(RETRY_MS), retryAfterMs=RETRY_MS)
        if self._policy is not None and emptied is not None:
            # Whoever is let in spends the point, or tells in a moment that there are others: a crowd has to wait for
            # the next, and is not looked at because of one.
            until = emptied.until + self._policy.microseconds(1) / 1e6
            self._empty.keep(bucket, replace(emptied, until=until, again=max(until, emptied.again)))
        return None

    async def _admit(self, bill: Bill, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted() -> Message:
            message = await receive()
            bill.body += len(message.get("body", b""))
            return message

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                await bill.settle()
                verdict = bill.verdict
                if bill.policy is not None and verdict is not None:
                    headers = MutableHeaders(scope=message)
                    headers.update(_standing(bill.policy, verdict.remaining, verdict.reset_ms))
                    if message["status"] == HTTPStatus.TOO_MANY_REQUESTS:
                        headers.update(_retry_after(verdict.retry_ms))
            await send(message)

        token = _current.set(bill)
        try:
            await self.app(scope, counted, with_headers)
        finally:
            _current.reset(token)


def bucket_of(scope: Scope) -> str:
    """Whose points a request spends: those of its caller, or of its address where nobody is asked who they are."""
    caller: Caller = scope["state"].get("caller", ANONYMOUS)
    if caller is ANONYMOUS:
        return f"address:{neighbourhood(scope['state']['address'])}"
    return f"client:{caller.client}"


def _standing(policy: Policy, remaining: int, reset_ms: int) -> dict[str, str]:
    """How the bucket stands, in the words of draft-ietf-httpapi-ratelimit-headers."""
    return {
        "RateLimit-Policy": f'"default";q={policy.burst};w={policy.window}',
        "RateLimit": f'"default";r={remaining};t={ceil(reset_ms / 1_000)}',
    }


def _retry_after(retry_ms: int) -> dict[str, str]:
    return {"Retry-After": str(ceil(retry_ms / 1_000))}
