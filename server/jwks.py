"""The public keys of whoever issues JWTs: asked for seldom, however many tokens name keys that there are not."""

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, OKPKey, RSAKey

from db.clock import ticks

log = logging.getLogger(__name__)
Key = RSAKey | ECKey | OKPKey
# Of the whole answer.
SECONDS = 5
LARGEST = 1_048_576
# Between two fetches, whatever tokens name; sooner only while there are no keys at all.
PAUSE_SECONDS = 60
FIRST_PAUSE_SECONDS = 5
# From here on keys are asked for again, without anybody waiting for that.
FRESH_SECONDS = 3_600


class Keys:
    """The newest keys that the issuer is known to have had: while it is away, they go on being used."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: dict[str, Key] = {}
        self._tried = self._fetched = float("-inf")
        self._fetching: asyncio.Task[None] | None = None

    @property
    def known(self) -> bool:
        """Whether there are any."""
        return bool(self._keys)

    async def find(self, key_id: str | None) -> Key | None:
        """The key with that id. Without an id: the only one there is."""
        if (key := self._named(key_id)) is None:
            if fetching := self._fetch(PAUSE_SECONDS if self._keys else FIRST_PAUSE_SECONDS):
                # Whoever else waits for it goes on waiting when one of them leaves.
                await asyncio.shield(fetching)
            return self._named(key_id)
        if ticks() - self._fetched > FRESH_SECONDS:
            self._fetch(PAUSE_SECONDS)
        return key

    async def close(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)

    def _named(self, key_id: str | None) -> Key | None:
        if key_id is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(key_id)

    def _fetch(self, pause: float) -> asyncio.Task[None] | None:
        """The fetch that is under way, or a new one unless the last was just now."""
        if self._fetching is not None and not self._fetching.done():
            return self._fetching
        if ticks() - self._tried < pause:
            return None
        self._tried = ticks()
        self._fetching = asyncio.create_task(self._refresh())
        return self._fetching

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(SECONDS), httpx.AsyncClient(timeout=SECONDS) as http:
                found = dict(_usable(await self._load(http)))
        # What comes from elsewhere may be anything.
        except (httpx.HTTPError, TimeoutError, ValueError, RecursionError) as error:
            log.warning("The issuer's keys cannot be had from %s: %r", self._url, error)
            return
        if not found:
            log.warning("The issuer has no keys for signatures at %s", self._url)
            return
        self._keys, self._fetched = found, ticks()

    async def _load(self, http: httpx.AsyncClient) -> Any:
        # Redirects are not followed: what the settings name is who is believed.
        async with http.stream("GET", self._url, headers={"Accept": "application/json"}) as response:
            if response.status_code != httpx.codes.OK:
                raise ValueError(f"status {response.status_code}")
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > LARGEST:
                    raise ValueError("too large")
        return json.loads(body)


def _usable(keys: Any) -> Iterator[tuple[str, Key]]:
    """Those that signatures can be checked with. A secret among them would be no secret any more: it is left out."""
    listed = keys.get("keys") if isinstance(keys, dict) else None
    if not isinstance(listed, list):
        raise ValueError("no JWK set")  # noqa: TRY004  # to us any wrong answer is one
    for each in listed:
        try:
            key = JWKRegistry.import_key(each)
            key.check_use("sig")
            key.check_key_op("verify")
            key.ensure_kid()
        # joserfc takes what it is given for what it should be.
        except (JoseError, ValueError, TypeError, KeyError, AttributeError):
            log.info("One of the issuer's keys is not for signatures, or not understood: it is left out")
            continue
        if isinstance(key, RSAKey | ECKey | OKPKey) and isinstance(key.kid, str):
            yield key.kid, key
