"""Who can reach us, as far as the settings tell, and what is shown to them by default."""

import ipaddress
import socket
from urllib.parse import urlsplit

from server.settings import Settings

# What a machine calls itself. No name server has these, or any name below the first.
THIS_MACHINE = ("localhost", "*.localhost", "127.0.0.1", "[::1]")


def shows_graphiql(settings: Settings) -> bool:
    if settings.trusted_documents is not None:
        return False  # it could ask nothing: see server/trusted.py
    return settings.graphiql == "on" or (settings.graphiql == "auto" and is_ours_alone(settings))


def shows_schema(settings: Settings) -> bool:
    """Whether callers may ask for it, and are told names that they may have meant."""
    return settings.introspection == "on" or (settings.introspection == "auto" and is_ours_alone(settings))


def is_ours_alone(settings: Settings) -> bool:
    """Whether only this machine reaches us; a proxy on it, which others can reach, has left a trace in the settings."""
    public = urlsplit(settings.public_url or "").hostname
    return is_loopback(settings.host) and not settings.trusted_proxies and (public is None or is_loopback(public))


def allowed_hosts(settings: Settings) -> tuple[str, ...] | None:
    """The names that callers may use for us; None: any.

    Where nobody is asked who they are, being on this machine is what lets callers in, and a browser is: a page from
    anywhere may have had its own name point to this machine. It is told by that name.
    """
    if settings.allowed_hosts is not None:
        return settings.allowed_hosts
    if settings.authentication == "required" or not is_loopback(settings.host):
        return None
    own = [settings.host, urlsplit(settings.public_url or "").hostname or settings.host]
    return (*THIS_MACHINE, *(f"[{name}]" if ":" in name else name.lower() for name in own))


def allowed_origins(settings: Settings) -> tuple[str, ...] | None:
    """Those of other pages that may ask us; None: any, as far as what they ask has a token.

    Without authentication a page could ask whatever its visitor's machine can. A browser that keeps to the rules does
    not send that anyway, since what we take has to be announced before; this is for those that do not.
    """
    return None if settings.authentication == "required" else named_origins(settings)


def named_origins(settings: Settings) -> tuple[str, ...]:
    """Those of other pages that the settings name. Before a WebSocket browsers announce nothing, so no others may open
    one.
    """
    public = urlsplit(settings.public_url or "")
    return (*settings.cors_origins, *([f"{public.scheme}://{public.netloc}"] if public.netloc else []))


def takes_direct_requests_alone(settings: Settings) -> bool:
    """Whether being on this machine is all that lets callers in: a proxy here would let in whoever reaches it."""
    return settings.authentication == "off" and settings.unauthenticated == "loopback" and not settings.trusted_proxies


def is_loopback(host: str) -> bool:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)
