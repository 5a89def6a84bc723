"""Links to the files of tasks: signed, and good for a while."""

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlencode
from uuid import UUID

from db import files
from db.files import Files
from resolvers.callers import Caller

PATH = "/files/"
# What is uploaded comes before the first attempt; and for what is none no link is made.
UPLOAD, NONE = 0, -1
# In the one way of writing them that is ours: seconds since 1970, and the number of an attempt.
INSTANT, ATTEMPT = re.compile("[1-9][0-9]{9,11}"), re.compile("[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class Link:
    url: str
    expires_at: datetime


class BadLink(Exception):  # an answer, not an error
    """Why a link is not followed."""


@dataclass(frozen=True, slots=True)
class Links:
    """A link is its caller's: it ends with the token that it was made for, and when what was shown instead expires."""

    files: Files
    # The same in all processes (db/secrets.py).
    secret: bytes
    # How long a link is good for.
    seconds: int
    # Whether the token of that id is still good.
    good: Callable[[str], Awaitable[bool]]

    async def make(self, task_id: UUID, attempt: int, origin: str, caller: Caller) -> Link:
        """A link to that attempt's file, for whoever has it, made anew each time."""
        expires = self._expires(caller)
        expires_at = datetime.fromtimestamp(expires, UTC)
        # A bucket does not know our tokens: such a link ends by time alone.
        direct = await self.files.link(files.path(task_id, attempt), max(1, expires - int(time.time())))
        if direct is not None:
            return Link(direct, expires_at)
        return Link(self._url(task_id, attempt, origin, expires, caller.token_id), expires_at)

    def upload(self, task_id: UUID, origin: str, caller: Caller) -> str:
        """A link to PUT the task's file to, for whoever has it, made anew each time."""
        return self._url(task_id, UPLOAD, origin, self._expires(caller), caller.token_id)

    async def check_download(self, task_id: UUID, query: Mapping[str, str]) -> int:
        """Whose file it is: the attempt's that the query names. Raises BadLink as `check` does."""
        named = query.get("attempt", "")
        attempt = int(named) if ATTEMPT.fullmatch(named) else NONE
        await self.check(task_id, attempt, query)
        return attempt

    async def check(self, task_id: UUID, attempt: int, query: Mapping[str, str]) -> None:
        """Raise BadLink unless the query is one that `make`, or `upload` for an attempt of UPLOAD, has made for this
        very file, and is still good.
        """
        expires, token_id = query.get("expires", ""), query.get("token")
        if not INSTANT.fullmatch(expires):
            raise BadLink("This is not a link that was given out.")
        signature = self._signature(task_id, attempt, int(expires), token_id)
        if not hmac.compare_digest(signature.encode(), query.get("signature", "").encode("utf-8", "replace")):
            raise BadLink("This is not a link that was given out.")
        if time.time() >= int(expires):
            raise BadLink("The link has expired: ask for the task again to get a new one.")
        if token_id is not None and not await self.good(token_id):
            raise BadLink("The link has ended with the token that it was made for.")

    def _expires(self, caller: Caller) -> int:
        expires = int(time.time()) + self.seconds
        return expires if caller.expires_at is None else min(expires, int(caller.expires_at.timestamp()))

    def _url(self, task_id: UUID, attempt: int, origin: str, expires: int, token_id: str | None) -> str:
        signature = self._signature(task_id, attempt, expires, token_id)
        query = {"attempt": attempt or None, "expires": expires, "token": token_id, "signature": signature}
        given = urlencode({name: value for name, value in query.items() if value is not None})
        return f"{origin}{PATH}{task_id}?{given}"

    def _signature(self, task_id: UUID, attempt: int, expires: int, token_id: str | None) -> str:
        signed = f"{'PUT' if attempt == UPLOAD else 'GET'} {PATH}{task_id} {attempt} {expires}"
        if token_id is not None:
            signed += f" {token_id}"
        digest = hmac.new(self.secret, signed.encode("utf-8", "replace"), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")
