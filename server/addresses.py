"""Whose request it is, as far as the network knows."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.setting_kinds import Network

# Of all that claim to have forwarded a request so many are looked at, the nearest first.
HOPS = 20
# Of a request that came by no network.
NOWHERE = "local"


class Addresses:
    """Puts the caller's address into the request's state, as `address`."""

    def __init__(self, app: ASGIApp, proxies: Sequence[Network]) -> None:
        self.app = app
        self._proxies = proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            scope.setdefault("state", {})["address"] = address(scope, self._proxies)
        await self.app(scope, receive, send)


def address(scope: Scope, proxies: Sequence[Network]) -> str:
    """The address of whoever connected; if that is a listed proxy, of whoever it says had connected to it, and so on.

    What a caller writes into `X-Forwarded-For` itself is never reached: it stands before what the proxies add.
    """
    client = scope.get("client")
    nearest = _parsed(client[0]) if client else None
    if nearest is None:
        return NOWHERE
    forwarded = ",".join(Headers(scope=scope).getlist("x-forwarded-for")).rsplit(",", HOPS)
    while forwarded and any(nearest in network for network in proxies):
        before = _parsed(forwarded.pop())
        if before is None:
            break
        nearest = before
    return str(nearest)


def neighbourhood(address: str) -> str:
    """What is counted as one caller: an IPv4 address, but of IPv6, where everybody has many, the network (/64)."""
    parsed = _parsed(address)
    if not isinstance(parsed, IPv6Address):
        return address
    return f"{IPv6Address(int(parsed) >> 64 << 64)}/64"


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    """The address, which may have a port: `192.0.2.1:4711`, `[2001:db8::1]:4711`."""
    text = text.strip()
    bare = text[1:].partition("]")[0] if text.startswith("[") else text
    if bare.count(":") == 1:
        bare = bare.partition(":")[0]
    try:
        parsed = ip_address(bare)
    except ValueError:
        return None
    # How a socket for both shows an IPv4 caller.
    return getattr(parsed, "ipv4_mapped", None) or parsed
