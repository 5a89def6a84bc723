"""This process's copy of all segments, and how it is kept current."""

import asyncio
import logging

from sqlalchemy.ext.asyncio import AsyncEngine

from db import catalogue
from db.cache import Cache
from db.cache_format import State
from db.catalogue import Rollout
from db.clock import Clock, ticks
from db.segments import Segment

log = logging.getLogger(__name__)

# Every so often PostgreSQL is asked, whatever Redis says: that bounds how long a lost announcement can matter.
POLL_SECONDS = 30


class Catalogue:
    """The live segments by id, as of `version`."""

    def __init__(self, reader: AsyncEngine, clock: Clock) -> None:
        self.version = -1
        self.live: dict[int, Segment] = {}
        self.rollouts: dict[int, Rollout] = {}
        # Every segment that is as old as this copy has such an id: ids are given out in the order of versions.
        self.newest_id = 0
        self._reader = reader
        self._clock = clock
        # Refreshes are numbered: the last that began, and the last that began and succeeded.
        self._begun = 0
        self._loaded = 0
        self._turn = asyncio.Lock()

    async def refresh(self) -> None:
        """Take in everything that was committed before the call. Any number of callers share one statement."""
        asked = self._begun
        async with self._turn:
            if self._loaded > asked:
                return  # one began after we asked, and has succeeded
            self._begun += 1
            await self._load()
            self._loaded = self._begun

    async def reach(self, version: int) -> None:
        """Be at that version or a later one."""
        if self.version < version:
            await self.refresh()

    async def agree(self, cache: Cache, state: State | None) -> State | None:
        """Bring this copy, and the version in Redis if that is the older one, to where both may be used.

        The returned state is the one that lists in Redis count under; None: none of them counts.
        """
        if state is None:
            await self.refresh()
            state = await cache.plant(self.version)
            if state is None:
                return None
        if state.catalogue_version == self.version:
            return state
        if state.catalogue_version < self.version:
            # The process that made the change could not announce it, or has not got to it yet.
            await cache.announce(self.version)
            return state
        await self.refresh()
        if self.version < state.catalogue_version:
            # PostgreSQL itself went back: it was restored from a backup. What Redis holds is of another past.
            await cache.renounce()
            return None
        return state

    async def poll(self) -> None:
        """Keep looking at PostgreSQL, for ever."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                await self.refresh()
            except Exception as error:  # noqa: BLE001  # whatever it was, the next look may succeed
                log.warning("PostgreSQL was not asked for the segments' version: %s", error)

    async def _load(self) -> None:
        async with self._reader.connect() as conn:
            sent = ticks()
            changes = await catalogue.since(conn, self.version)
            self._clock.observe(sent, ticks(), changes.clock)
            if changes.version < self.version:  # restored from a backup: ids and versions were given out anew
                changes = await catalogue.since(conn, -1)
                self.live, self.newest_id = {}, 0
                self.rollouts = {}
        for segment in changes.segments:
            self.newest_id = max(self.newest_id, segment.id)
            self.rollouts.pop(segment.id, None)
            if segment.deleted_at is None:
                self.live[segment.id] = segment
            else:
                self.live.pop(segment.id, None)
        self.rollouts.update({rollout.segment.id: rollout for rollout in changes.rollouts})
        self.version = changes.version
