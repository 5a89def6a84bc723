"""The short way of an operation that was seen before: in as bytes, out as bytes, and nothing done twice.

It does what the middleware does (server/app.py), for requests that are as nearly all of them are: a small JSON body to
`/graphql` from a caller who is known. Every other request, and every answer that is not simply the right one, goes the
long way from the start; what it has paid for already is not taken again.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from time import perf_counter
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from db.deadlines import Deadlines
from db.limiter import Limiter
from resolvers import facts
from resolvers.callers import ANONYMOUS
from resolvers.context import Context, Services
from resolvers.errors import ApiError
from resolvers.facts import Facts
from server import exposure, metrics
from server.accept import JSON, negotiated
from server.addresses import NOWHERE, neighbourhood
from server.admission import Bill, Gate, bucket_of_address, bucket_of_client, standing
from server.authentication import bearer, remembered
from server.compiled_values import SurpriseError
from server.compiling import Answer
from server.graphql import HEADER_CHARACTERS, PATH, is_json, may_be_inexact
from server.heads import Asked, Headers, Heads
from server.hosts import PASSED_ON, Names
from server.jwt import Jwts
from server.known_tokens import KnownTokens
from server.leaving import Leaving
from server.middleware import SHARE_BYTES
from server.naming import DOCUMENT_ID
from server.persisted import Persisted
from server.plans import ROOT, Plan, Plans
from server.requests import REQUEST_ID, conclude, is_logged, new_id
from server.runs import Run
from server.settings import Settings
from server.traffic import Traffic

log = logging.getLogger(__name__)
# Values of a header that are remembered: callers do not have many.
VALUES = 200
CONTENT_TYPE, LENGTH, HOST, ACCEPT, AUTHORIZATION, ID = 1, 2, 4, 8, 16, 32
HEADERS = {
    b"content-type": CONTENT_TYPE,
    b"content-length": LENGTH,
    b"host": HOST,
    b"accept": ACCEPT,
    b"authorization": AUTHORIZATION,
    b"x-request-id": ID,
}
# Up to this price memberships are asked for before they are paid for.
EARLY_POINTS = 2
# What has to be there.
NEEDED = CONTENT_TYPE | LENGTH | HOST
# Who sends these wants more than an answer, or comes from further away.
UNUSUAL = frozenset({b"origin", b"expect", b"transfer-encoding", b"upgrade"})
KEPT = frozenset({b"keep-alive", b"Keep-Alive"})


# The rest of an answer's headers, and its body.
Written = tuple[bytes, bytes]


@dataclass(slots=True)
class Begun:
    """An answer that is under way."""

    asked: Asked
    # None where everything is free.
    bill: Bill | None
    plan: Plan
    answer: Answer
    coerced: Mapping[str, Any]
    points: int
    run: Run
    # None: it has not begun, and is paid for first. Complete when the run has finished.
    data: dict[str, Any] | None
    noted: Facts
    # By perf_counter.
    began: float

    @property
    def is_paid(self) -> bool:
        """Whether nothing has to be paid before it is answered, so that its data have begun."""
        return self.bill is None and self.data is not None


class FastPath:
    """Answers what it can, for as long as the application runs: `state` is what its requests share."""

    def __init__(
        self,
        settings: Settings,
        plans: Plans,
        persisted: Persisted,
        gate: Gate,
        leaving: Leaving,
        headers: Mapping[str, str],
        state: Mapping[str, Any],
    ) -> None:
        self._plans = plans
        self._persisted = persisted
        # Whether a text alone is not enough to be executed.
        self._all_named = persisted.trusted is not None
        self._gate = gate
        self._leaving = leaving
        # What finds room always: see server/middleware.py.
        self._most_bytes = min(SHARE_BYTES, settings.max_body_bytes)
        self._slow_ms = settings.slow_ms
        self._deadlines = Deadlines(settings.execution_timeout)
        self._public_url = settings.public_url
        self._standard = "".join(f"{name.lower()}: {value}\r\n" for name, value in headers.items())
        self._services: Services = state["services"]
        self._tokens: KnownTokens = state["tokens"]
        self._jwts: Jwts | None = state["jwts"]
        self._limiter: Limiter = state["limiter"]
        self._traffic: Traffic = state["traffic"]
        self._begun_with: tuple[Headers, bytes] = [], b""
        self.heads = Heads()
        self.authenticated = settings.authentication == "required"
        # What a proxy says of its callers' addresses matters where nobody says who they are.
        looking = exposure.takes_direct_requests_alone(settings) or settings.trusted_proxies
        self._unusual = UNUSUAL | PASSED_ON if looking and not self.authenticated else UNUSUAL
        names = Names(exposure.allowed_hosts(settings))
        self._is_json = lru_cache(VALUES)(lambda value: is_json(value.decode("latin-1")))
        self._is_ours = lru_cache(VALUES)(lambda value: names.named(value.decode("latin-1")) is not None)
        self._negotiated = lru_cache(VALUES)(lambda value: negotiated(value.decode("latin-1")[:HEADER_CHARACTERS]))
        self._bucket = lru_cache(VALUES)(lambda host: bucket_of_address(neighbourhood(host)))

    def asked(self, headers: Sequence[tuple[bytes, bytes]], client: tuple[str, int] | None) -> Asked | None:
        """What a POST to PATH is, by its headers; None: it goes the long way."""
        seen, found = 0, dict[int, bytes]()
        for name, value in headers:
            kind = HEADERS.get(name)
            if kind is not None:
                if seen & kind:
                    return None
                seen |= kind
                found[kind] = value
            elif name in self._unusual or (name == b"connection" and value not in KEPT):
                return None
        if seen & NEEDED != NEEDED:
            return None
        media = self._negotiated(found[ACCEPT]) if ACCEPT in found else JSON
        if media is None or not self._is_json(found[CONTENT_TYPE]) or not self._is_ours(found[HOST]):
            return None
        caller, shown, bucket = ANONYMOUS, None, ""
        if self.authenticated:
            shown = bearer(found.get(AUTHORIZATION, b"").decode("latin-1"))
        else:
            bucket = self._bucket(NOWHERE if client is None else client[0])
        given = found.get(ID)
        request_id = given.decode() if given is not None and REQUEST_ID.fullmatch(given) else None
        asked = self.asked_again(
            Asked(caller, caller.rank, shown, media, request_id, found[HOST], bucket), int(found[LENGTH])
        )
        return asked if asked is not None and self._gate.is_open(asked.bucket) else None

    def asked_again(self, asked: Asked, length: int) -> Asked | None:
        """The same for a request with the same headers but for its length: what may have changed since is looked at."""
        if length > self._most_bytes or self._leaving.begun:
            return None
        if self.authenticated:
            caller = None if asked.shown is None else remembered(asked.shown, self._tokens, self._jwts)
            if caller is None:
                return None
            if caller is not asked.caller:
                asked = asked._replace(caller=caller, rank=caller.rank, bucket=bucket_of_client(caller))
        return asked

    def begin(self, asked: Asked, body: bytes, scheme: str) -> Begun | None:
        """Find out what is asked, and ask for the memberships that it takes; None: it goes the long way.

        Nobody sees them who cannot pay for them.
        """
        began = perf_counter()
        # Others may have come in since the headers were looked at.
        if not self._gate.is_open(asked.bucket):
            return None
        try:
            given = orjson.loads(body)
            if may_be_inexact(given, body):
                return None
            query = given.get("query")
            if self._all_named or "extensions" in given or DOCUMENT_ID in given or query is None:
                query = self._persisted.at_hand(given, self._services.cache)
            plan = self._plans.find(query, given.get("operationName"))
            if plan is None or asked.rank < plan.rank:
                return None
            variables = given.get("variables")
            if variables is None:
                variables = {}
            elif type(variables) is not dict:
                return None
            coerced = plan.variables.coerced(variables)
            answer, only_memberships = plan.answer(coerced)
            points = plan.price.points(variables)
            # Who cannot pay for much has it neither begun nor thrown away.
            policy = self._gate.policy
            early = only_memberships and (policy is None or points <= EARLY_POINTS)
            origin = partial(self._origin, scheme, asked.host)
            # Whoever reads for it from now on notes it here.
            noted = facts.begin()
            run = Run(Context.of(self._services, asked.caller, asked.bucket, origin), plan.field_name, noted)
            data = answer(ROOT, run, coerced) if early else None
            run.ask()
        except Exception:  # noqa: BLE001  # whatever it was: graphql-core says it
            return None
        self._traffic.note()
        self._gate.enter(asked.bucket)
        metrics.open_requests.value += 1
        bill = None
        if policy is None:
            noted.cost = points
        else:
            bill = Bill(asked.bucket, self._limiter, policy, self._gate.empty)
        return Begun(asked, bill, plan, answer, coerced, points, run, data, noted, began)

    async def finish(self, begun: Begun) -> Written | None:
        """What answers it, but for its beginning; None: it goes the long way."""
        facts.resume(begun.noted)
        failure: Exception | None = None
        try:
            if begun.bill is not None:
                await begun.bill.pay(begun.points)
            if begun.data is None:
                with self._deadlines.one():
                    begun.data = begun.answer(ROOT, begun.run, begun.coerced)
                    await begun.run.finish()
            else:
                # What Redis and PostgreSQL may take has bounds of its own, which are shorter.
                await begun.run.finish()
        except Exception as error:  # noqa: BLE001  # as above
            failure = error
        except asyncio.CancelledError:
            self.leave(begun)
            await begun.run.abandon()
            raise
        if failure is not None:
            try:
                await begun.run.abandon()
            except asyncio.CancelledError:
                self.leave(begun)
                raise
        return self.written(begun, failure)

    def written(self, begun: Begun, failure: BaseException | None) -> Written | None:
        """The same of one whose data are complete, unless that has failed."""
        self.leave(begun)
        body = b""
        if failure is None:
            try:
                body = orjson.dumps({"data": begun.data})
            except Exception as error:  # noqa: BLE001  # as above
                failure = error
        if failure is not None:
            if not isinstance(failure, SurpriseError | ApiError):
                log.info("an answer is begun anew: %s", type(failure).__name__)
            return None
        asked, plan, noted = begun.asked, begun.plan, begun.noted
        request_id = noted.request_id = asked.request_id or new_id()
        seconds = perf_counter() - begun.began
        if noted.code is None and not is_logged(seconds, self._slow_ms):
            metrics.count_right(plan.counted, seconds)
        else:
            noted.client, noted.kind = asked.caller.client, plan.kind
            noted.document, noted.operation = plan.hash, plan.name
            conclude(noted, "POST", PATH, 200, seconds, len(body), self._slow_ms)
        head = (
            f"content-type: {asked.media}; charset=utf-8\r\ncontent-length: {len(body)}\r\n{self._standard}"
            f"{self._standing(begun.bill)}x-request-id: {request_id}\r\n\r\n"
        )
        return head.encode(), body

    def bill(self, begun: Begun) -> Bill:
        """What it has paid, for whoever goes on with it."""
        if begun.bill is not None:
            return begun.bill
        return Bill(begun.asked.bucket, self._limiter, None, self._gate.empty, points=begun.points)

    def beginning(self, headers: Headers) -> bytes:
        """The first lines of an answer, with the headers that uvicorn has for all answers of the same second."""
        if headers is not self._begun_with[0]:
            lines = [STATUS_LINE[200], *(b"%b: %b\r\n" % header for header in headers)]
            self._begun_with = headers, b"".join(lines)
        return self._begun_with[1]

    def leave(self, begun: Begun) -> None:
        """Give its place to others."""
        self._gate.leave(begun.asked.bucket)
        metrics.open_requests.value -= 1

    def _origin(self, scheme: str, host: bytes) -> str:
        return self._public_url or f"{scheme}://{host.decode('latin-1')}"

    def _standing(self, bill: Bill | None) -> str:
        if bill is None or bill.policy is None or bill.verdict is None:
            return ""
        named = standing(bill.policy, bill.verdict.remaining, bill.verdict.reset_ms)
        return "".join(f"{name.lower()}: {value}\r\n" for name, value in named.items())
