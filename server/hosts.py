"""Which names callers may use for us, and of which pages a browser may send us anything."""

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from server.graphql import refusal
from server.requests import HEALTH

DEFAULT_PORTS = {"http": 80, "https": 443}
# What proxies add.
PASSED_ON = frozenset({b"forwarded", b"x-forwarded-for", b"x-forwarded-host"})
NOT_DIRECT = (
    "A proxy has passed this on, and nobody is asked who they are: to serve others set "
    "SEGMENTQL_AUTHENTICATION=required."
)


class Names:
    """The names that callers may use for us, without ports; `*.name` is any name below. None: any."""

    def __init__(self, names: Collection[str] | None) -> None:
        self._any = names is None
        self._names = frozenset(name for name in names or () if not name.startswith("*"))
        self._below = tuple(name.removeprefix("*") for name in names or () if name.startswith("*"))

    def named(self, host: str | None) -> tuple[str, int | None] | None:
        """Name and port that the caller used, or None if that is not ours."""
        found = None if host is None else _parsed(host)
        if self._any:
            return found or ("", None)
        if found is not None and (found[0] in self._names or found[0].endswith(self._below)):
            return found
        return None


class Hosts:
    """Refuses requests that were meant for somebody else.

    `origins` are of other pages that may ask besides our own; None: any, since a page without a token is refused
    anyway. `connecting` are of those that may open a WebSocket. `direct`: what a proxy has passed on is refused, for
    nobody knows whom it lets in.
    """

    def __init__(
        self, app: ASGIApp, names: Names, origins: Collection[str] | None, connecting: Collection[str], *, direct: bool
    ) -> None:
        self.app = app
        self._direct = direct
        self._names = names
        self._origins = origins
        self._connecting = connecting

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Probes use the address of a container, which nobody can know beforehand.
        if scope["type"] in ("http", "websocket") and scope["path"] not in HEALTH:
            request = HTTPConnection(scope)
            given = request.headers.getlist("host")
            if (host := self._names.named(given[0] if len(given) == 1 else None)) is None:
                await refusal(request, 400, "Host must have one of this service's names.")(scope, receive, send)
                return
            if not self._is_ours(request, host):
                message = "Pages of that origin may not ask: see SEGMENTQL_CORS_ORIGINS."
                await refusal(request, 403, message)(scope, receive, send)
                return
            if self._direct and any(name in PASSED_ON for name, _ in scope["headers"]):
                await refusal(request, 403, NOT_DIRECT)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _is_ours(self, request: HTTPConnection, host: tuple[str, int | None]) -> bool:
        """Whether no page sent it, or our own, or one that may."""
        origin = request.headers.get("origin")
        origins = self._connecting if request.scope["type"] == "websocket" else self._origins
        if origin is None or origins is None or origin in origins:
            return True
        scheme, _, address = origin.partition("://")
        page = _parsed(address)
        default = DEFAULT_PORTS.get(scheme)
        # Behind something that ends TLS the scheme is another, and the default port with it.
        return page is not None and page[0] == host[0] and (page[1] or default) in (host[1] or default, host[1])


def _parsed(host: str) -> tuple[str, int | None] | None:
    """The name in lower case, without a dot at its end, an IPv6 address in brackets; and the port."""
    try:
        parts = urlsplit(f"//{host}")
        name, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not name or parts.netloc != host or parts.username is not None:
        return None
    return (f"[{name}]" if ":" in name else name.removesuffix(".")), port
