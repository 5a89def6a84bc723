"""Heads of requests that were read before: whoever sends the very same bytes again means the same, and they need not be
read again.

Nearly all callers do: a head says who asks, and how long the body is, and neither changes much.
"""

from typing import NamedTuple

from resolvers.callers import Caller

END = b"\r\n\r\n"
# Of all connections together, those that were kept first forgotten first. Some callers send another head each time.
MOST = 500
LONGEST = 2_000

Headers = list[tuple[bytes, bytes]]


class Asked(NamedTuple):
    """What the headers of a request say, if they are as they should be; the next one's say the same."""

    caller: Caller
    # That of the caller's scope.
    rank: int
    # What the caller has shown, to be looked at each time.
    shown: str | None
    media: str
    # As the caller chose it.
    request_id: str | None
    host: bytes
    bucket: str


class Head(NamedTuple):
    headers: Headers
    # Bytes of the body.
    length: int
    asked: Asked


class Heads:
    """By their bytes, and by whoever sends them where that matters."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, str | None], Head] = {}

    def find(self, head: bytes, client: str | None) -> Head | None:
        return self._known.get((head, client))

    def keep(self, head: bytes, client: str | None, known: Head) -> None:
        if len(head) > LONGEST:
            return
        if len(self._known) >= MOST:
            del self._known[next(iter(self._known))]
        self._known[head, client] = known
