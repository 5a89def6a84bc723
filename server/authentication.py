"""Who asks: found out from the `Authorization` header, before a byte of the body is read."""

from math import ceil

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from db.clock import ticks
from db.limiter import Limiter, Policy
from db.recent import Recent
from resolvers import facts
from resolvers.callers import ANONYMOUS, Caller
from resolvers.errors import Overloaded, Unauthenticated
from server import tokens
from server.addresses import neighbourhood
from server.graphql import PATH, not_allowed, refusal, wants_page
from server.jwt import Jwts
from server.known_tokens import KnownTokens
from server.settings import Settings

CHALLENGE = 'Bearer realm="segmentql"'
NOT_GOOD = f'{CHALLENGE}, error="invalid_token"'
# Addresses that are not listened to for a while; of forgotten ones the limiter knows.
ADDRESSES = 10_000


class Authentication:
    """Puts the caller into the request's state, as `caller`, or refuses the request.

    Without it nothing is executed. What is asked of other paths than that of GraphQL is for everybody, and so is the
    page that is shown there.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self._required = settings.authentication == "required"
        self._failures = Policy(settings.login_failures, settings.login_failures, seconds=60)
        # Until when, by `ticks`.
        self._unheard: Recent[str, float] = Recent(ADDRESSES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == PATH:
            request = Request(scope)
            if (refused := not_allowed(request)) is not None:
                await refused(scope, receive, send)
                return
            if not wants_page(request):
                caller = await self._caller(request) if self._required else ANONYMOUS
                if isinstance(caller, Response):
                    await caller(scope, receive, send)
                    return
                request.state.caller = caller
                facts.current().client = caller.client
        await self.app(scope, receive, send)

    async def _caller(self, request: Request) -> Caller | Response:
        headers = request.headers.getlist("authorization")
        shown = bearer(headers[0] if headers else "")
        if shown is None:
            return _refused(request, CHALLENGE)
        if len(headers) > 1:
            shown = ""
        known: KnownTokens = request.state.tokens
        jwts: Jwts | None = request.state.jwts
        caller = remembered(shown, known, jwts)
        if caller is not None:
            return caller
        token = tokens.parse(shown)
        # What follows costs something, so whoever guesses may not have it for long.
        place = neighbourhood(request.state.address)
        if (seconds := (self._unheard.find(place) or 0) - ticks()) > 0 and not _recognised(shown, token, known, jwts):
            return _too_often(request, seconds)
        try:
            if token is not None:
                caller = await known.caller(token)
            elif jwts is not None and not shown.startswith(tokens.PREFIX):
                caller = await jwts.caller(shown)
        except Overloaded as error:
            return refusal(request, 503, str(error), {"Retry-After": "1"}, retryAfterMs=1_000)
        if caller is None and token is not None and known.recognised(token):
            # It was revoked, or has expired: that is no guess.
            return _refused(request, NOT_GOOD)
        return caller or await self._failed(request, place)

    async def _failed(self, request: Request, place: str) -> Response:
        limiter: Limiter = request.state.limiter
        verdict = await limiter.spend(f"login:{place}", 1, self._failures)
        if verdict.empty_us:
            self._unheard.keep(place, ticks() + verdict.empty_us / 1e6)
        return _refused(request, NOT_GOOD) if verdict.allowed else _too_often(request, verdict.retry_ms / 1e3)


def bearer(header: str) -> str | None:
    """What is shown in an `Authorization` header, or None when it shows nothing of the kind."""
    scheme, _, text = header.partition(" ")
    return text.strip(" ") if scheme.lower() == "bearer" else None


def remembered(shown: str, known: KnownTokens, jwts: Jwts | None) -> Caller | None:
    """Who shows it, if that is known without asking anybody."""
    token = tokens.parse(shown)
    if token is not None:
        return known.remembered(token)
    return None if jwts is None else jwts.remembered(shown)


def _recognised(shown: str, token: tokens.Token | None, known: KnownTokens, jwts: Jwts | None) -> bool:
    """Whether somebody has proved lately that this is no guess: its neighbours' guesses are not held against it."""
    if token is not None:
        return known.recognised(token)
    return jwts is not None and jwts.recognised(shown)


def _refused(request: Request, challenge: str) -> Response:
    return refusal(request, 401, str(Unauthenticated()), {"WWW-Authenticate": challenge})


def _too_often(request: Request, seconds: float) -> Response:
    message = "Too many wrong tokens came from your address. Try again later, with one that is good."
    return refusal(request, 429, message, {"Retry-After": str(ceil(seconds))}, retryAfterMs=ceil(seconds * 1_000))
