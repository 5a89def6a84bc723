"""Users who are watched: each change is read once for all who watch, and told to each of them once, in order."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncEngine

from db import watching
from db.cache import Cache
from db.cache_format import USER_CHANNEL
from db.channels import Channels
from db.history import MembershipEvent, Position
from db.watching import Look, Watched
from resolvers.catalogue import Catalogue
from resolvers.inbox import Inbox
from resolvers.looking import Looking
from resolvers.settling import Settling

# Messages that wait for a subscriber.
MOST_MESSAGES = 100
# Later than the expiry, so that the database's clock has passed it, too.
AFTER_SECONDS = 0.001

Rollouts = Mapping[int, tuple[tuple[int, int], ...]]


@dataclass(frozen=True, slots=True)
class News:
    """What has happened to a user; or that something may be missing, and the user has to be read anew."""

    events: list[MembershipEvent]
    resync: bool


RESYNC = News([], resync=True)


def together(news: Sequence[News]) -> News:
    """What has happened one after the other, as one message."""
    events = [event for each in news for event in each.events]
    if any(each.resync for each in news) or len(events) > watching.MOST_EVENTS:
        return RESYNC
    return News(events, resync=False)


@dataclass(slots=True)
class Topic:
    """A user who is watched by somebody."""

    inboxes: "set[Inbox[News]]" = field(default_factory=set)
    # What was told, or was so before anybody watched, of the time from `since` on; None: nobody has looked yet.
    known: set[Position] | None = None
    since: datetime | None = None
    # How many events there were of that time.
    written: int = 0
    # Somebody has to read it anew, whatever the next look finds.
    anew: bool = False
    timer: asyncio.TimerHandle | None = None

    def shows_news(self, found: Watched) -> bool:
        """Whether it was not known before. Of events that were not read their number says so."""
        return self.anew or self.known != found.events.keys() or (found.too_many and self.written != found.written)


class WatchedUsers:
    def __init__(self, reader: AsyncEngine, cache: Cache, catalogue: Catalogue, channels: Channels) -> None:
        self._reader = reader
        self._cache = cache
        self._catalogue = catalogue
        self._channels = channels
        self._looking = Looking(self._look)
        self._settling = Settling()
        self._topics: dict[str, Topic] = {}
        # The segments as they were when everybody was looked at.
        self._version = -1
        self._rollouts: Rollouts = {}

    def __len__(self) -> int:
        return len(self._topics)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self._looking.running():
            yield

    def heard(self, user_id: str) -> None:
        """Somebody says that there is news of the user."""
        if user_id in self._topics:
            self._looking.soon([user_id])

    def look_at_all(self) -> None:
        self._looking.soon(self._topics)

    @contextmanager
    def watching(self, user_id: str, dropped: Callable[[], None]) -> Iterator[Inbox[News]]:
        """What happens to the user from now on, for as long as the block lasts."""
        inbox: Inbox[News] = Inbox(MOST_MESSAGES, dropped)
        topic = self._topics.get(user_id)
        if topic is None:
            topic = self._topics[user_id] = Topic()
            self._channels.add(USER_CHANNEL + user_id)
        topic.inboxes.add(inbox)
        try:
            yield inbox
        finally:
            topic.inboxes.discard(inbox)
            if not topic.inboxes:
                self._forget(user_id, topic)

    async def begin(self, user_id: str, inbox: Inbox[News]) -> None:
        """Return when whatever is read of the user from now on shows all that the inbox will not."""
        await self._looking.ask(user_id)
        inbox.clear()

    def _forget(self, user_id: str, topic: Topic) -> None:
        del self._topics[user_id]
        self._channels.remove(USER_CHANNEL + user_id)
        if topic.timer is not None:
            topic.timer.cancel()

    async def _look(self, user_ids: Sequence[str]) -> None:
        topics = {user_id: topic for user_id in user_ids if (topic := self._topics.get(user_id)) is not None}
        if not topics:
            return
        since = {
            user_id: self._settling.until if topic.known is None else topic.since for user_id, topic in topics.items()
        }
        look = await self._looked(since)
        if not self._settling.note(look):
            self._begin_again()
            return
        self._see_segments(look)
        # Of those who were not looked at before, too: a change that shows in their first look is told to nobody.
        changed = [user_id for user_id, topic in topics.items() if topic.shows_news(look.users[user_id])]
        # Whoever has changed them may not have got to it yet; what is read from now on shows what is told.
        await self._cache.forget(changed)
        # From here on nothing is waited for: what counts as told is told.
        for user_id, topic in topics.items():
            found = look.users[user_id]
            self._await_expiry(user_id, topic, look.at, found.next_expiry)
            news = self._news(topic, since[user_id] or look.beginning, found)
            if news is not None:
                for inbox in list(topic.inboxes):
                    inbox.put(news)

    async def _looked(self, since: Mapping[str, datetime | None]) -> Look:
        """A look, of which all segments are known."""
        while True:
            rolled_out = bool(self._catalogue.rollouts)
            async with self._reader.connect() as conn:
                look = await watching.look(conn, since, rolled_out=rolled_out, mark=self._settling.wants_mark())
            await self._catalogue.reach(look.catalogue_version)
            if bool(self._catalogue.rollouts) == rolled_out:
                return look

    def _news(self, topic: Topic, since: datetime, found: Watched) -> News | None:
        """What the look has found that nobody was told yet; from now on it counts as told."""
        known, anew, unread = topic.known, topic.anew, found.too_many and topic.shows_news(found)
        topic.anew, topic.written = False, found.written
        topic.since = max(since, self._settling.until or since)
        topic.known = {each for each in found.events if each.at >= topic.since}
        if known is None:
            return RESYNC if anew else None
        # What was told is told no more: an expiry was moved, by somebody who came before it and was committed after it.
        if anew or unread or not known <= found.events.keys():
            return RESYNC
        events = [event for position, event in found.events.items() if position not in known]
        return News(events, resync=False) if events else None

    def _see_segments(self, look: Look) -> None:
        """Where segments have changed, look at everybody: one may have been deleted, or its rollout have moved."""
        catalogue = self._catalogue
        if catalogue.version == self._version:
            return
        if catalogue.version != look.catalogue_version:
            # They have changed since: the next look has what comes of it.
            self.look_at_all()
            return
        rollouts = {segment_id: rollout.changes for segment_id, rollout in catalogue.rollouts.items()}
        if rollouts != self._rollouts and self._version >= 0:
            self._look_at_all_anew()
        else:
            self.look_at_all()
        self._version, self._rollouts = catalogue.version, rollouts

    def _begin_again(self) -> None:
        """As if nobody had looked: what was known, and since when, was of another server or by another clock."""
        for topic in self._topics.values():
            topic.known = topic.since = None
        self._look_at_all_anew()

    def _look_at_all_anew(self) -> None:
        for topic in self._topics.values():
            topic.anew = True
        self.look_at_all()

    def _await_expiry(self, user_id: str, topic: Topic, at: datetime, expiry: datetime | None) -> None:
        if topic.timer is not None:
            topic.timer.cancel()
            topic.timer = None
        if expiry is not None and self._topics.get(user_id) is topic:
            seconds = (expiry - at).total_seconds() + AFTER_SECONDS
            topic.timer = asyncio.get_running_loop().call_later(seconds, self._looking.soon, [user_id])
