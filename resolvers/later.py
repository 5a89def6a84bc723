"""A user's memberships that are to be asked for: whoever collects several of these asks for all of them at once."""

from collections.abc import Callable, Generator
from typing import Any

from db.memberships import Membership
from resolvers.reads import Reads


class Later:
    """What is made of them when they are there. Awaited by itself it asks by itself."""

    __slots__ = ("latest", "make", "reads", "user_id")

    def __init__(self, reads: Reads, user_id: str, make: Callable[[list[Membership]], Any], *, latest: bool) -> None:
        self.reads = reads
        self.user_id = user_id
        self.make = make
        self.latest = latest

    def __await__(self) -> Generator[Any, None, Any]:
        found = yield from self.reads.memberships(self.user_id, latest=self.latest).__await__()
        return self.make(found)
