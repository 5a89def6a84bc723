"""A JWT is believed when its issuer has signed it, for us, for now, in a way that only the issuer can."""

import asyncio
import base64
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from conftest import Serve
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from joserfc.registry import Header

from db.clock import ticks
from db.tables import Scope
from resolvers.callers import Caller
from resolvers.errors import Overloaded
from server import jwks
from server import jwt as our_jwt
from server.jwt import Jwts
from server.settings import Settings

ISSUER, AUDIENCE = "https://login.example.com/", "segmentql"
RSA = RSAKey.generate_key(2048, {"kid": "rsa-1"})
EC = ECKey.generate_key("P-256", {"kid": "ec-1"})
ED_PRIVATE = Ed25519PrivateKey.generate()
ED = OKPKey.import_key(ED_PRIVATE.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), {"kid": "ed-1"})
GOOD: dict[str, Any] = {"iss": ISSUER, "aud": AUDIENCE, "sub": "billing", "scope": "openid segmentql:read"}


class Issuer:
    """Answers with its keys, and counts how often."""

    def __init__(self, *keys: Any) -> None:
        self.keys: list[dict[str, Any]] = [key.as_dict(private=False) for key in keys]
        self.head = "200 OK"
        self.body: bytes | None = None
        self.asked = 0
        self.server: asyncio.Server

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked += 1
        body = json.dumps({"keys": self.keys}).encode() if self.body is None else self.body
        writer.write(
            f"HTTP/1.1 {self.head}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
        )
        writer.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/keys"


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    issuer = Issuer(RSA, EC, ED)
    issuer.server = await asyncio.start_server(issuer.answer, "127.0.0.1", 0)
    yield issuer
    issuer.server.close()


@pytest.fixture
def of_issuer(settings: Settings, issuer: Issuer) -> Settings:
    return replace(settings, jwt_issuer=ISSUER, jwt_audience=AUDIENCE, jwt_jwks_url=issuer.url)


@pytest.fixture
async def jwts(of_issuer: Settings) -> AsyncIterator[Jwts]:
    jwts = Jwts(of_issuer)
    yield jwts
    await jwts.close()


def signed(claims: dict[str, Any] | None = None, key: Any = EC, header: Header | None = None, **changes: Any) -> str:
    """A good token, but for what is changed; what is None is left out."""
    every = {**GOOD, "exp": int(time.time()) + 600, **(claims or {}), **changes}
    header = {"alg": "ES256", "kid": key.kid, **(header or {})}
    return jwt.encode(header, {name: value for name, value in every.items() if value is not None}, key, [header["alg"]])


def encoded(*parts: object) -> str:
    texts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in parts]
    return ".".join(base64.urlsafe_b64encode(text).rstrip(b"=").decode() for text in texts)


async def test_a_good_token_says_who_it_is_what_they_may_and_until_when(jwts: Jwts, issuer: Issuer) -> None:
    end = int(time.time()) + 600
    expected = Caller("jwt:billing", Scope.READ, None, datetime.fromtimestamp(end, UTC))
    for _ in range(3):
        assert await jwts.caller(signed(exp=end)) == expected
    assert issuer.asked == 1


async def test_every_algorithm_by_which_only_the_issuer_can_sign_is_understood(jwts: Jwts, issuer: Issuer) -> None:
    others = {
        name: ECKey.generate_key(curve, {"kid": name}) for name, curve in (("ES384", "P-384"), ("ES512", "P-521"))
    }
    issuer.keys += [key.as_dict(private=False) for key in others.values()]
    keys = dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), RSA)
    for name, key in {**keys, **others, "ES256": EC, "Ed25519": ED}.items():
        assert await jwts.caller(signed(key=key, header={"alg": name})) is not None, name
    by_its_old_name = encoded({"alg": "EdDSA", "kid": "ed-1"}, {**GOOD, "exp": time.time() + 600})
    signature = ED_PRIVATE.sign(by_its_old_name.encode())
    assert await jwts.caller(f"{by_its_old_name}.{encoded(signature)}") is not None


@pytest.mark.parametrize(
    ("said", "scope"),
    [
        ("segmentql:read", Scope.READ),
        ("segmentql:admin segmentql:read", Scope.ADMIN),
        ("openid  segmentql:write", Scope.WRITE),
        (["segmentql:read", "segmentql:write", 5], Scope.WRITE),
        ("segmentql:reader", None),
        ("SEGMENTQL:READ", None),
        ("read", None),
        ("xsegmentql:admin", None),
        ("", None),
        ([], None),
        ({"segmentql:admin": True}, None),
        (True, None),
        (None, None),
    ],
)
async def test_the_highest_scope_counts_and_without_one_nothing_is_allowed(
    jwts: Jwts, said: object, scope: Scope | None
) -> None:
    found = await jwts.caller(signed(scope=said))
    assert (found and found.scope) == scope


async def test_claims_and_words_can_be_others(of_issuer: Settings) -> None:
    jwts = Jwts(replace(of_issuer, jwt_client_claim="azp", jwt_scope_claim="roles", jwt_scope_prefix=""))
    found = await jwts.caller(signed(azp="shop", roles=["admin"], sub=None))
    assert found is not None
    assert (found.client, found.scope) == ("jwt:shop", Scope.ADMIN)
    assert await jwts.caller(signed()) is None
    await jwts.close()


def refused_tokens() -> dict[str, str]:
    now = int(time.time())
    claims = {**GOOD, "exp": now + 600}
    public = RSA.as_pem(private=False)
    other = ECKey.generate_key("P-256", {"kid": "ec-1"})
    header, payload, signature = signed().split(".")
    return {
        "another issuer": signed(iss="https://login.example.com"),
        "no issuer": signed(iss=None),
        "an issuer that is a list": signed(iss=[ISSUER]),
        "another audience": signed(aud="others"),
        "others' audiences": signed(aud=["others", "segmentql2"]),
        "no audience": signed(aud=None),
        "an audience that is an object": signed(aud={AUDIENCE: 1}),
        "expired": signed(exp=now - 1),
        "no end": signed(exp=None),
        "an end that is a text": signed(exp=str(now + 600)),
        "an end that is true": signed(exp=True),
        "an end beyond the calendar": signed(exp=10**15),
        "an end beyond numbers": signed(exp=float("inf")),
        "an end that is no number": signed(exp=float("nan")),
        "an end beyond what a number can be": signed(exp=10**400),
        "an end beyond what a clock can be": signed(exp=1e18),
        "a beginning beyond what a number can be": signed(nbf=-(10**400)),
        "not good yet": signed(nbf=now + 90),
        "a beginning that is a text": signed(nbf="now"),
        "made in the future": signed(iat=now + 90),
        "of nobody": signed(sub=None),
        "of an empty name": signed(sub=""),
        "of a long name": signed(sub="x" * 201),
        "of a name that no line has": signed(sub="a\nb"),
        "of a number": signed(sub=5),
        "an unknown key": signed(header={"kid": "ec-2"}),
        "a key of another kind": signed(header={"kid": "rsa-1"}),
        "no key's name": encoded({"alg": "ES256"}, claims) + "." + signature,
        "a key's name that is a list": encoded({"alg": "ES256", "kid": ["ec-1"]}, claims) + "." + signature,
        "signed by another": signed(key=other),
        "other claims": ".".join([header, encoded({**claims, "scope": "segmentql:admin"}), signature]),
        "no signature": f"{header}.{payload}.",
        "half a token": f"{header}.{payload}",
        "alg none": encoded({"alg": "none", "kid": "ec-1"}, claims) + ".",
        "alg NonE": encoded({"alg": "NonE", "kid": "ec-1"}, claims) + ".",
        "no alg": encoded({"kid": "ec-1"}, claims) + "." + signature,
        "alg that is a list": encoded({"alg": ["ES256"], "kid": "ec-1"}, claims) + "." + signature,
        "HS256 by the public key": confused(public, claims),
        "HS256 by nothing": signed(key=OctKey.import_key("secret", {"kid": "ec-1"}), header={"alg": "HS256"}),
        "a critical header": encoded({"alg": "ES256", "kid": "ec-1", "crit": ["b64"], "b64": False}, claims) + ".x",
        "a critical number": encoded({"alg": "ES256", "kid": "ec-1", "crit": 5}, claims) + ".x",
        "a critical object": encoded({"alg": "ES256", "kid": "ec-1", "crit": [{}]}, claims) + ".x",
        "a critical nothing": encoded({"alg": "ES256", "kid": "ec-1", "crit": None}, claims) + ".x",
        "a header that we know, but critical": signed_text(json.dumps(claims), {"crit": ["kid"]}),
        "a header that is a list": encoded(["alg"], claims) + "." + signature,
        "a deep header": encoded(b"[" * 4_000, claims) + "." + signature,
        "claims that are a list": signed_text("[]"),
        "claims that are no JSON": signed_text("{"),
        "claims that are deep": signed_text("[" * 5_000),
        "of five parts": "a.b.c.d.e",
        "no token": "x",
        "nothing": "",
        "not ASCII": "é.é.é",
        "more than 8 kB": signed(more="x" * 8_192),
    }


def confused(public: bytes, claims: dict[str, Any]) -> str:
    """Signed by what everybody knows, as if it were a secret."""
    head = encoded({"alg": "HS256", "kid": "rsa-1"}, claims)
    return f"{head}.{encoded(hmac.digest(public, head.encode(), 'sha256'))}"


def signed_text(payload: str, header: Header | None = None) -> str:
    head = encoded({"alg": "Ed25519", "kid": "ed-1", **(header or {})}, payload.encode())
    return f"{head}.{encoded(ED_PRIVATE.sign(head.encode()))}"


@pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")  # of keys that are made wrong on purpose
async def test_everything_else_is_refused_and_none_of_it_is_in_the_log(
    jwts: Jwts, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "server")
    for name, token in refused_tokens().items():
        assert await jwts.caller(token) is None, name
        assert len(token) < 9 or token not in caplog.text, name
    for secret in ("billing", "a\nb", *signed().split(".")[1:]):
        assert secret not in caplog.text
    assert await jwts.caller(signed()) is not None
    assert issuer.asked == 1


numbers = st.integers() | st.floats() | st.sampled_from([10**400, -(10**400), 1e18, -1e18, 2**63])
anything = st.recursive(
    st.none() | st.booleans() | numbers | st.text("a.é\n", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=3),
    max_leaves=5,
)
# Of what is else right one or two things are made up.
headers = st.dictionaries(
    st.sampled_from(["alg", "kid", "crit", "b64", "typ", "cty", "jwk", "jku", "x5c", "x5t", "x5u"]),
    anything,
    max_size=2,
)
claims_of_anybody = st.dictionaries(
    st.sampled_from(["iss", "aud", "sub", "scope", "exp", "nbf", "iat"]), anything, max_size=2
)


def test_whatever_is_in_a_token_it_is_good_or_it_is_not(of_issuer: Settings) -> None:
    jwts = Jwts(of_issuer)
    jwts._keys._keys = dict(jwks._usable({"keys": [ED.as_dict(private=False)]}))
    jwts._keys._tried = jwts._keys._fetched = ticks()
    good = {**GOOD, "exp": time.time() + 600}

    with asyncio.Runner() as runner:

        @hypothesis_settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(headers, claims_of_anybody)
        def ask(header: Header, claims: dict[str, Any]) -> None:
            for head, payload in ((header, good), ({}, {**good, **claims})):
                found = runner.run(jwts.caller(signed_text(json.dumps(payload), head)))
                assert found is None or found.client.startswith("jwt:")

        ask()


async def test_clocks_may_differ_by_a_minute_but_the_end_is_the_end(jwts: Jwts) -> None:
    now = time.time()
    assert await jwts.caller(signed(nbf=now + 30, iat=now + 30)) is not None
    ending = signed(exp=time.time() + 0.5)
    assert await jwts.caller(ending) is not None
    await asyncio.sleep(0.6)  # what is remembered ends, too
    assert await jwts.caller(ending) is None


async def test_keys_for_other_uses_and_secrets_are_left_out(jwts: Jwts, issuer: Issuer) -> None:
    secret = OctKey.import_key("a secret that everybody can read", {"kid": "oct-1"})
    encryption = ECKey.generate_key("P-256", {"kid": "enc-1", "use": "enc"})
    signing = ECKey.generate_key("P-256", {"kid": "sign-1", "key_ops": ["sign"]})
    only = ECKey.generate_key("P-256", {"kid": "alg-1", "alg": "ES512"})
    issuer.keys += [secret.as_dict(), *(key.as_dict(private=False) for key in (encryption, only))]
    issuer.keys += [signing.as_dict(private=False), {"kty": "EC"}, {"kty": "new"}, {}, {"kty": "RSA", "kid": 5}]
    assert await jwts.caller(signed()) is not None
    assert await jwts.caller(signed(key=secret, header={"alg": "HS256"})) is None
    for key in (encryption, signing, only):
        plain = ECKey.import_key(
            {k: v for k, v in key.as_dict(private=True).items() if k not in ("use", "key_ops", "alg")}
        )
        assert await jwts.caller(signed(key=plain, header={"kid": key.kid})) is None, key.kid


async def test_an_only_key_needs_no_name(jwts: Jwts, issuer: Issuer) -> None:
    nameless = {name: value for name, value in EC.as_dict(private=False).items() if name != "kid"}
    issuer.keys = [nameless]
    token = jwt.encode({"alg": "ES256"}, {**GOOD, "exp": time.time() + 60}, EC, ["ES256"])
    assert await jwts.caller(token) is not None


async def test_a_new_key_is_found_with_one_fetch_a_minute_at_the_most(
    jwts: Jwts, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await jwts.caller(signed()) is not None
    new = ECKey.generate_key("P-256", {"kid": "ec-2"})
    issuer.keys = [new.as_dict(private=False)]
    for number in range(20):
        assert await jwts.caller(signed(header={"kid": f"unknown-{number}"})) is None
    assert await jwts.caller(signed(key=new)) is None
    assert issuer.asked == 1
    monkeypatch.setattr(jwks, "PAUSE_SECONDS", 0)
    found = await asyncio.gather(*(jwts.caller(signed(key=new, sub=f"caller {number}")) for number in range(50)))
    assert None not in found
    assert issuer.asked == 2
    # The key that is gone is believed no more.
    assert await jwts.caller(signed(sub="another")) is None


async def test_while_the_issuer_is_away_its_known_keys_are_believed(
    jwts: Jwts, issuer: Issuer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert await jwts.caller(signed()) is not None
    monkeypatch.setattr(jwks, "FRESH_SECONDS", -1)
    monkeypatch.setattr(jwks, "PAUSE_SECONDS", 0)
    wrong: dict[str, tuple[str, bytes | None]] = {
        "a failure": ("500 No", None),
        "elsewhere": ("302 Found\r\nLocation: /keys", None),
    }
    wrong |= {"no JSON": ("200 OK", b"<html>"), "no set": ("200 OK", b"[]"), "no keys": ("200 OK", b'{"keys": []}')}
    wrong |= {"deep": ("200 OK", b"[" * 100_000), "endless": ("200 OK", b" " * 1_100_000)}
    for number, (issuer.head, issuer.body) in enumerate(wrong.values()):
        assert await jwts.caller(signed(sub=f"caller {number}")) is not None
        # That was not waited for; this is, and finds no more.
        assert await jwts.caller(signed(header={"kid": "unknown"})) is None
    issuer.server.close()
    assert await jwts.caller(signed(header={"kid": "unknown"})) is None
    assert await jwts.caller(signed(sub="the last")) is not None
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) >= len(wrong) + 1


async def test_until_the_issuer_was_there_once_nobody_is_told_that_a_token_is_wrong(
    jwts: Jwts, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer.head = "503 Away"
    for _ in range(3):
        with pytest.raises(Overloaded):
            await jwts.caller(signed())
    assert issuer.asked == 1
    monkeypatch.setattr(jwks, "FIRST_PAUSE_SECONDS", 0)
    issuer.head = "200 OK"
    assert await jwts.caller(signed()) is not None


async def test_a_caller_with_a_jwt_is_answered_and_one_without_is_not(
    serve: Serve, of_issuer: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("jwt_issuer", "jwt_audience", "jwt_jwks_url")
    given = {name: getattr(of_issuer, name) for name in names}
    change = 'mutation { createSegment(input: {slug: "A"}, idempotencyKey: "the-very-key") { segment { slug } } }'
    critical = encoded({"alg": "ES256", "kid": "ec-1", "crit": 5}, GOOD) + ".x"
    reader, writer = signed(), signed(scope="segmentql:write")
    wrong = [signed(iss="others"), critical, signed(exp=10**400)]
    # Each is looked at again, and who has shown a good one is not held to what others guess.
    monkeypatch.setattr(our_jwt, "REMEMBERED_SECONDS", 0)
    async with serve(authentication="required", login_failures=3, **given) as client:
        statuses = []
        for token in (reader, writer, *wrong, signed(sub="another"), critical, writer):
            client.http.headers["Authorization"] = f"Bearer {token}"
            statuses.append((await client.http.post("/graphql", json={"query": change})).status_code)
        assert statuses == [403, 200, 401, 401, 401, 429, 429, 200]
