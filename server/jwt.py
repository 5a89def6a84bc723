"""Who shows a JWT: what its issuer says of the caller, in words that only the issuer can have signed."""

import hashlib
import json
import logging
import time
from datetime import UTC, datetime
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError, UnsupportedAlgorithmError

from db.clock import ticks
from db.recent import Recent
from resolvers.callers import SCOPES, Caller
from resolvers.errors import Overloaded
from server.jwks import Key, Keys
from server.settings import Settings

log = logging.getLogger(__name__)
# By a secret key that two sides know, HS256 and its like, anybody could sign who may check.
ALGORITHMS = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519", "EdDSA"}
)
# Issuers' clocks are not ours. What has expired has expired.
LEEWAY_SECONDS = 60
LONGEST = 8_192
LONGEST_CLIENT = 200
SHOWN_KEY_ID = 40
# So long a token is taken for good without being looked at again: so long a key lives on that the issuer has withdrawn.
REMEMBERED_SECONDS = 60
REMEMBERED = 10_000
# Beyond the year 9999 there is no instant that Python knows.
LAST_INSTANT = 253_402_300_799
# joserfc takes what it is given for what it should be: of what strangers make up it may raise any of these.
MADE_UP = (JoseError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


class _NotGoodError(Exception):
    """Why a token is not good, in words that are nobody's secret."""


class _Algorithms(jws.JWSRegistry):
    def get_alg(self, name: str) -> Any:
        # Besides, joserfc's own warns of a name that issuers still use, EdDSA, at every token.
        if name not in ALGORITHMS:
            raise UnsupportedAlgorithmError
        return self.algorithms[name]


# Issuers put things of their own into the header; a token of which they call something critical is refused.
REGISTRY = _Algorithms(strict_check_header=False)


class Jwts:
    """Tells who shows a JWT of the issuer in the settings, which have one."""

    def __init__(self, settings: Settings) -> None:
        assert settings.jwt_jwks_url is not None
        self._settings = settings
        self._keys = Keys(settings.jwt_jwks_url)
        # By the token's hash, with until when by `ticks`.
        self._good: Recent[bytes, tuple[Caller, float]] = Recent(REMEMBERED)

    async def close(self) -> None:
        await self._keys.close()

    def remembered(self, token: str) -> Caller | None:
        """Who that is, if the token was good a moment ago."""
        if len(token) > LONGEST or not token.isascii():
            return None
        caller, until = self._good.find(_fingerprint(token)) or (None, 0.0)
        return caller if caller is not None and ticks() < until and not _is_over(caller) else None

    def recognised(self, token: str) -> bool:
        """Whether the token was good when it was last looked at, and has not expired: who shows it does not guess."""
        caller, _ = self._good.find(_fingerprint(token)) or (None, 0.0)
        return caller is not None and not _is_over(caller)

    async def caller(self, token: str) -> Caller | None:
        """Who that is, or None if the token is not good. Raises Overloaded while the issuer's keys are not known."""
        if len(token) > LONGEST or not token.isascii():
            return None
        if (remembered := self.remembered(token)) is not None:
            return remembered
        key_id: str | None = None
        try:
            read = _read(token)
            key_id = _key_id(read)
            found = self._named(_claims(read, await self._key(key_id)))
        except _NotGoodError as error:
            log.info("JWT refused: %s (key %r)", error, key_id and key_id[:SHOWN_KEY_ID])
            return None
        self._good.keep(_fingerprint(token), (found, ticks() + REMEMBERED_SECONDS))
        return found

    async def _key(self, key_id: str | None) -> Key:
        key = await self._keys.find(key_id)
        if key is not None:
            return key
        if not self._keys.known:
            raise Overloaded
        raise _NotGoodError("the issuer has no such key")

    def _named(self, claims: dict[str, Any]) -> Caller:
        settings = self._settings
        if claims.get("iss") != settings.jwt_issuer:
            raise _NotGoodError("another issuer")
        audience = claims.get("aud")
        if settings.jwt_audience not in (audience if isinstance(audience, list) else [audience]):
            raise _NotGoodError("for another audience")
        client = claims.get(settings.jwt_client_claim)
        if not isinstance(client, str) or not 0 < len(client) <= LONGEST_CLIENT or not client.isprintable():
            raise _NotGoodError("does not say whose it is")
        said = claims.get(settings.jwt_scope_claim)
        words = said.split() if isinstance(said, str) else said
        if not isinstance(words, list):
            words = []
        scopes = [scope for scope in SCOPES if f"{settings.jwt_scope_prefix}{scope}" in words]
        if not scopes:
            raise _NotGoodError("gives no scope")
        return Caller(f"jwt:{client}", scopes[-1], expires_at=_end(claims))


def _fingerprint(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _read(token: str) -> jws.CompactSignature:
    """The token, taken apart, of which nothing is to be believed yet."""
    try:
        read = jws.extract_compact(token.encode(), registry=REGISTRY)
    except MADE_UP as error:
        raise _NotGoodError("not a JWT") from error
    if not isinstance(read.protected, dict):
        raise _NotGoodError("not a JWT")
    if "crit" in read.protected:
        raise _NotGoodError("it has to be understood in a way that is not known here")
    return read


def _key_id(read: jws.CompactSignature) -> str | None:
    key_id = read.headers().get("kid")
    if not isinstance(key_id, str | None):
        raise _NotGoodError("not a JWT")
    return key_id


def _claims(read: jws.CompactSignature, key: Key) -> dict[str, Any]:
    try:
        signed = jws.validate_compact(read, key, registry=REGISTRY)
        claims = json.loads(read.payload)
    except MADE_UP as error:
        raise _NotGoodError(f"not signed by the issuer ({type(error).__name__})") from error
    if not signed or not isinstance(claims, dict):
        raise _NotGoodError("not signed by the issuer")
    return claims


def _end(claims: dict[str, Any]) -> datetime:
    now = time.time()
    for name in ("nbf", "iat"):
        if name in claims and _instant(claims, name) > now + LEEWAY_SECONDS:
            raise _NotGoodError("not good yet")
    if (end := _instant(claims, "exp")) <= now:
        raise _NotGoodError("expired")
    return datetime.fromtimestamp(end, UTC)


def _instant(claims: dict[str, Any], name: str) -> float:
    value = claims.get(name)
    # What is no number is between none.
    if isinstance(value, bool) or not isinstance(value, int | float) or not -LAST_INSTANT <= value <= LAST_INSTANT:
        raise _NotGoodError(f"{name} is no instant")
    return value


def _is_over(caller: Caller) -> bool:
    assert caller.expires_at is not None
    return caller.expires_at.timestamp() <= time.time()
