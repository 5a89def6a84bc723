"""Who asks: found out from the `Authorization` header, before a byte of the body is read."""

from dataclasses import dataclass
from math import ceil

from starlette.requests import HTTPConnection, Request
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


@dataclass(frozen=True, slots=True)
class NotIn:
    """Why somebody is not let in."""

    status: int
    message: str
    headers: dict[str, str]
    retry_ms: int | None = None

    def response(self, request: Request) -> Response:
        extensions = {} if self.retry_ms is None else {"retryAfterMs": self.retry_ms}
        return refusal(request, self.status, self.message, self.headers, **extensions)


class Logins:
    """Finds out who shows something, and does not listen to addresses that guess."""

    def __init__(self, settings: Settings) -> None:
        self.required = settings.authentication == "required"
        self._failures = Policy(settings.login_failures, settings.login_failures, seconds=60)
        # Until when, by `ticks`.
        self._unheard: Recent[str, float] = Recent(ADDRESSES)

    async def caller(self, connection: HTTPConnection, shown: str | None) -> Caller | NotIn:
        """Who shows it over that connection; None is nothing."""
        if shown is None:
            return _not_good(CHALLENGE)
        known: KnownTokens = connection.state.tokens
        jwts: Jwts | None = connection.state.jwts
        caller = remembered(shown, known, jwts)
        if caller is not None:
            return caller
        token = tokens.parse(shown)
        # What follows costs something, so whoever guesses may not have it for long.
        place = neighbourhood(connection.state.address)
        if (seconds := (self._unheard.find(place) or 0) - ticks()) > 0 and not _recognised(shown, token, known, jwts):
            return _too_often(seconds)
        try:
            caller = await looked_up(shown, known, jwts)
        except Overloaded as error:
            return NotIn(503, str(error), {"Retry-After": "1"}, 1_000)
        if caller is None and token is not None and known.recognised(token):
            # It was revoked, or has expired: that is no guess.
            return _not_good(NOT_GOOD)
        return caller or await self._failed(connection.state.limiter, place)

    async def _failed(self, limiter: Limiter, place: str) -> NotIn:
        verdict = await limiter.spend(f"login:{place}", 1, self._failures)
        if verdict.empty_us:
            self._unheard.keep(place, ticks() + verdict.empty_us / 1e6)
        return _not_good(NOT_GOOD) if verdict.allowed else _too_often(verdict.retry_ms / 1e3)


class Authentication:
    """Puts the caller into the request's state, as `caller`, or refuses the request.

    Without it nothing is executed. What is asked of other paths than that of GraphQL is for everybody, and so is the
    page that is shown there. Over a WebSocket callers say who they are once it is open (server/websockets.py).
    """

    def __init__(self, app: ASGIApp, logins: Logins) -> None:
        self.app = app
        self._logins = logins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == PATH:
            request = Request(scope)
            if (refused := not_allowed(request)) is not None:
                await refused(scope, receive, send)
                return
            if not wants_page(request):
                caller = await self._logins.caller(request, shown_by(request)) if self._logins.required else ANONYMOUS
                if isinstance(caller, NotIn):
                    await caller.response(request)(scope, receive, send)
                    return
                request.state.caller = caller
                facts.current().client = caller.client
        await self.app(scope, receive, send)


def shown_by(connection: HTTPConnection) -> str | None:
    """What a request's headers show; what is good is shown once."""
    headers = connection.headers.getlist("authorization")
    shown = bearer(headers[0] if headers else "")
    return shown if shown is None or len(headers) == 1 else ""


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


async def looked_up(shown: str, known: KnownTokens, jwts: Jwts | None) -> Caller | None:
    """Who shows it, or None when it is not good. Raises Overloaded when that cannot be found out."""
    token = tokens.parse(shown)
    if token is not None:
        return await known.caller(token)
    if jwts is not None and not shown.startswith(tokens.PREFIX):
        return await jwts.caller(shown)
    return None


def _recognised(shown: str, token: tokens.Token | None, known: KnownTokens, jwts: Jwts | None) -> bool:
    """Whether somebody has proved lately that this is no guess: its neighbours' guesses are not held against it."""
    if token is not None:
        return known.recognised(token)
    return jwts is not None and jwts.recognised(shown)


def _not_good(challenge: str) -> NotIn:
    return NotIn(401, str(Unauthenticated()), {"WWW-Authenticate": challenge})


def _too_often(seconds: float) -> NotIn:
    message = "Too many wrong tokens came from your address. Try again later, with one that is good."
    return NotIn(429, message, {"Retry-After": str(ceil(seconds))}, ceil(seconds * 1_000))
