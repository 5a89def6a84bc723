"""A user's memberships that are to be asked for: whoever collects several of these asks for all of them at once."""

from collections.abc import Callable, Generator, Sequence
from typing import Any

from db.memberships import Membership
from resolvers.context import Budget
from resolvers.reads import Reads


class Later:
    """What is made of them when they are there. Awaited by itself it asks by itself.

    Of all users of a list the same is asked and made, but for whose it is: one of these stands for all of them.
    """

    __slots__ = ("budget", "latest", "make", "reads", "user_id")

    def __init__(
        self,
        reads: Reads,
        budget: Budget,
        user_id: str,
        make: Callable[[list[Membership]], Any] | None,
        *,
        latest: bool,
    ) -> None:
        self.reads = reads
        self.budget = budget
        self.user_id = user_id
        # None: they are what is wanted, and each is to be spent.
        self.make = make
        self.latest = latest

    def __await__(self) -> Generator[Any, None, Any]:
        found = yield from self.reads.memberships(self.user_id, latest=self.latest).__await__()
        return self.made_of([found])[0]

    def made_of(self, found: Sequence[list[Membership]]) -> Sequence[Any]:
        """What is made of the memberships of each of several users."""
        if self.make is None:
            self.budget.spend(sum(map(len, found)))
            return found
        return list(map(self.make, found))
