"""Links to the files of tasks: signed, and good for a while."""

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlencode
from uuid import UUID

from db import files
from db.files import Files

PATH = "/files/"
# Seconds since 1970, in the one way of writing them that is ours.
# What is uploaded comes before the first attempt.
UPLOAD = 0
INSTANT = re.compile("[1-9][0-9]{9,11}")


@dataclass(frozen=True, slots=True)
class Link:
    url: str
    expires_at: datetime


class BadLink(Exception):  # an answer, not an error
    """Why a link is not followed."""


@dataclass(frozen=True, slots=True)
class Links:
    files: Files
    # The same in all processes (db/secrets.py).
    secret: bytes
    # How long a link is good for.
    seconds: int

    async def make(self, task_id: UUID, attempt: int, origin: str) -> Link:
        """A link to that attempt's file, for whoever has it, made anew each time."""
        expires = int(time.time()) + self.seconds
        expires_at = datetime.fromtimestamp(expires, UTC)
        direct = await self.files.link(files.path(task_id, attempt), self.seconds)
        if direct is not None:
            return Link(direct, expires_at)
        query = urlencode({"expires": expires, "signature": self._signature(task_id, attempt, expires)})
        return Link(f"{origin}{PATH}{task_id}?{query}", expires_at)

    def upload(self, task_id: UUID, origin: str) -> str:
        """A link to PUT the task's file to, for whoever has it, made anew each time."""
        expires = int(time.time()) + self.seconds
        query = urlencode({"expires": expires, "signature": self._signature(task_id, UPLOAD, expires)})
        return f"{origin}{PATH}{task_id}?{query}"

    def check(self, task_id: UUID, attempt: int, query: Mapping[str, str]) -> None:
        """Raise BadLink unless the query is one that `make`, or `upload` for an attempt of UPLOAD, has made for this
        very file, and is still good.
        """
        expires = query.get("expires", "")
        if not INSTANT.fullmatch(expires):
            raise BadLink("This is not a link that was given out.")
        signature = self._signature(task_id, attempt, int(expires))
        if not hmac.compare_digest(signature.encode(), query.get("signature", "").encode("utf-8", "replace")):
            raise BadLink("This is not a link that was given out.")
        if time.time() >= int(expires):
            raise BadLink("The link has expired: ask for the task again to get a new one.")

    def _signature(self, task_id: UUID, attempt: int, expires: int) -> str:
        signed = f"{'PUT' if attempt == UPLOAD else 'GET'} {PATH}{task_id} {attempt} {expires}".encode()
        digest = hmac.new(self.secret, signed, hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")
