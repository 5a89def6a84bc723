"""Everything that is watched in this process, how its news arrives, and how much of it one caller may watch."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from sqlalchemy.ext.asyncio import AsyncEngine

from db.beside import beside
from db.cache import Cache
from db.cache_format import TASK_CHANNEL, USER_CHANNEL
from db.channels import Channels
from resolvers import metrics
from resolvers.catalogue import Catalogue
from resolvers.errors import LimitExceeded
from resolvers.fair_turns import FairTurns
from resolvers.watching import WatchedUsers
from resolvers.watching_tasks import WatchedTasks

# How often tasks are looked at, and users while Redis is away: then nobody says that there is news.
POLL_SECONDS = 1.0
# And users with Redis there: what it says may get lost, and is late by no more than that.
ANYWAY_POLLS = 15
# Messages that are made at a time. What happens meanwhile to whoever waits for a turn becomes one message.
MESSAGES_AT_A_TIME = 16


class Subscriptions:
    def __init__(self, url: str, reader: AsyncEngine, cache: Cache, catalogue: Catalogue, most_of_one: int) -> None:
        self._cache = cache
        self._channels = Channels(url, self._heard)
        self._most_of_one = most_of_one
        self._counts: dict[str, int] = {}
        self.turns = FairTurns(MESSAGES_AT_A_TIME)
        self.users = WatchedUsers(reader, cache, catalogue, self._channels)
        self.tasks = WatchedTasks(reader, self._channels)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Subscriptions"]:
        async with self._channels.running(), self.users.running(), self.tasks.running(), beside(self._poll()):
            yield self

    def require_room(self, payer: str) -> None:
        """Raises LimitExceeded when the caller watches as much as one may."""
        if self._counts.get(payer, 0) >= self._most_of_one:
            raise LimitExceeded(f"You have {self._most_of_one} subscriptions open, and may not have more.")

    @contextmanager
    def counted(self, payer: str) -> Iterator[None]:
        """For as long as the block lasts the caller has a subscription more."""
        self.require_room(payer)
        self._counts[payer] = self._counts.get(payer, 0) + 1
        metrics.subscriptions.inc()
        try:
            yield
        finally:
            metrics.subscriptions.dec()
            left = self._counts[payer] - 1
            if left:
                self._counts[payer] = left
            else:
                del self._counts[payer]

    def _heard(self, channel: str | None) -> None:
        if channel is not None and channel.startswith(USER_CHANNEL):
            self.users.heard(channel.removeprefix(USER_CHANNEL))
        elif channel is not None and channel.startswith(TASK_CHANNEL):
            self.tasks.heard(channel.removeprefix(TASK_CHANNEL))
        else:  # segments have changed, or something may have been missed
            self.users.look_at_all()

    async def _poll(self) -> None:
        polls = 0
        while True:
            await asyncio.sleep(POLL_SECONDS)
            polls += 1
            self.tasks.look_at_all()
            if polls % ANYWAY_POLLS == 0 or not (self._channels.listening and self._cache.available):
                self.users.look_at_all()
