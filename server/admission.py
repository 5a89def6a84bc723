"""Who is let in: nobody beyond so many at a time, and nobody who has spent all points. Nothing is done for them.

The places are this process's own. They protect it, and PostgreSQL behind it, also while Redis is away.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
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

        Whoever is told to come back has paid for being looked at, as far as there were points. Nobody pays twice: what
        came of it the first time is said again.
        """
        if self.points is not None:
            if self.verdict is not None and not self.verdict.allowed:
                raise RateLimited(self.verdict.retry_ms)
            return
        points = price + self._reading
        if self.policy is not None and points > self.policy.burst:
            raise LimitExceeded(f"The operation costs {points} points, and at most {self.policy.burst} can be spent.")
        await self._spend(points)

    @property
    def is_paid(self) -> bool:
        return self.points is not None and (self.verdict is None or self.verdict.allowed)

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


class Gate:
    """Who is inside, and who is known to have no points: of all requests for GraphQL, whichever way they come in."""

    def __init__(self, settings: Settings) -> None:
        self.policy = Policy(settings.rate_limit, settings.rate_burst) if settings.rate_limit else None
        self.empty: Empty = Recent(EMPTY_ONES)
        self._most = settings.max_concurrent
        self._most_of_one = settings.max_concurrent_per_client
        # By bucket, and of all of them together.
        self._inside: dict[str, int] = {}
        self._all = 0

    def has_place(self, bucket: str) -> bool:
        return self._all < self._most and self._inside.get(bucket, 0) < self._most_of_one

    def is_open(self, bucket: str) -> bool:
        """Whether nothing speaks against whoever spends from that bucket."""
        return self.has_place(bucket) and (self.policy is None or self.empty.find(bucket) is None)

    def enter(self, bucket: str) -> None:
        self._inside[bucket] = self._inside.get(bucket, 0) + 1
        self._all += 1

    def leave(self, bucket: str) -> None:
        self._all -= 1
        left = self._inside[bucket] - 1
        if left:
            self._inside[bucket] = left
        else:
            del self._inside[bucket]


class Place:
    """What somebody takes who is inside. What goes on for long gives it back as soon as it has begun."""

    def __init__(self, gate: Gate, bucket: str) -> None:
        self._gate: Gate | None = gate
        self._bucket = bucket
        gate.enter(bucket)

    def leave(self) -> None:
        if self._gate is not None:
            self._gate.leave(self._bucket)
            self._gate = None


class Admission:
    """Lets requests for GraphQL in, or refuses them at once: nobody waits here."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self.app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != PATH or wants_page(request := Request(scope)):
            await self.app(scope, receive, send)
            return
        bucket = bucket_of(scope)
        # One that was begun elsewhere may have paid already, perhaps with the last point: it is inside
        # (server/fast_path.py).
        bill: Bill | None = scope["state"].pop("bill", None)
        if (bill is None or not bill.is_paid) and (refused := self._refused(request, bucket)):
            await refused(scope, receive, lingering(receive, send))
            return
        scope["state"]["payer"] = bucket
        scope["state"]["traffic"].note()
        scope["state"]["place"] = place = Place(self._gate, bucket)
        try:
            bill = bill or Bill(bucket, scope["state"]["limiter"], self._gate.policy, self._gate.empty)
            await self._admit(bill, scope, receive, send)
        finally:
            place.leave()

    def _refused(self, request: Request, bucket: str) -> Response | None:
        """Who has no point, or finds no place, costs neither a look into the request nor one into Redis."""
        policy, empty = self._gate.policy, self._gate.empty
        now, emptied = ticks(), empty.find(bucket)
        if policy is not None and emptied is not None and emptied.until > now:
            retry_ms = ceil((emptied.again - now) * 1_000)
            headers = standing(policy, 0, ceil((emptied.full - now) * 1_000)) | _retry_after(retry_ms)
            error = RateLimited(retry_ms)
            return refusal(request, 429, str(error), headers, retryAfterMs=retry_ms)
        if not self._gate.has_place(bucket):
            return refusal(request, 503, str(Overloaded()), _retry_after(RETRY_MS), retryAfterMs=RETRY_MS)
        if policy is not None and emptied is not None:
            # Whoever is let in spends the point, or tells in a moment that there are others: a crowd has to wait for
            # the next, and is not looked at because of one.
            until = emptied.until + policy.microseconds(1) / 1e6
            empty.keep(bucket, replace(emptied, until=until, again=max(until, emptied.again)))
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
                    headers.update(standing(bill.policy, verdict.remaining, verdict.reset_ms))
                    if message["status"] == HTTPStatus.TOO_MANY_REQUESTS:
                        headers.update(_retry_after(verdict.retry_ms))
            await send(message)

        with paying(bill):
            await self.app(scope, counted, with_headers)


@contextmanager
def paying(bill: Bill) -> Iterator[None]:
    """Have what is executed in the block paid with it."""
    token = _current.set(bill)
    try:
        yield
    finally:
        _current.reset(token)


def bucket_of(scope: Scope) -> str:
    """Whose points a request spends: those of its caller, or of its address where nobody is asked who they are."""
    return bucket_of_caller(scope["state"].get("caller", ANONYMOUS), scope["state"]["address"])


def bucket_of_caller(caller: Caller, address: str) -> str:
    return bucket_of_address(neighbourhood(address)) if caller is ANONYMOUS else bucket_of_client(caller)


def bucket_of_address(place: str) -> str:
    return f"address:{place}"


def bucket_of_client(caller: Caller) -> str:
    return f"client:{caller.client}"


def standing(policy: Policy, remaining: int, reset_ms: int) -> dict[str, str]:
    """How the bucket stands, in the words of draft-ietf-httpapi-ratelimit-headers."""
    return {
        "RateLimit-Policy": f'"default";q={policy.burst};w={policy.window}',
        "RateLimit": f'"default";r={remaining};t={ceil(reset_ms / 1_000)}',
    }


def _retry_after(retry_ms: int) -> dict[str, str]:
    return {"Retry-After": str(ceil(retry_ms / 1_000))}
