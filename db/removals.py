"""Removing the lists of some users from Redis: what is to go at the same instant goes by the same commands."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from db.cache_format import key
from db.journal import JOURNAL, NAMED, Journal, adding
from db.pipeline import Pipeline

# Keys of one command: Redis does nothing else meanwhile.
TOGETHER = 100


class Removals:
    """`failed` is told of an error after which nobody knows what Redis still holds."""

    def __init__(
        self, pipeline: Pipeline, journal: Journal, seconds: float, failed: Callable[[Exception], None]
    ) -> None:
        self._pipeline = pipeline
        self._journal = journal
        self._seconds = seconds
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        # Those of the next write, and who waits for them.
        self._users: list[str] = []
        self._waiting: list[asyncio.Future[None]] = []

    def remove(self, user_ids: Sequence[str]) -> "asyncio.Future[None]":
        """Have the lists removed, and that noted. Done when Redis has answered, or has failed to."""
        removed: asyncio.Future[None] = self._loop.create_future()
        if not self._waiting:
            self._pipeline.soon(self._send)
        self._users += user_ids
        # Whoever has asked may leave, and others rely on it all the same.
        self._waiting.append(removed)
        return removed

    def _send(self) -> None:
        keys = list(dict.fromkeys(map(key, self._users)))
        waiting, self._users, self._waiting = self._waiting, [], []
        removal = _Removal(self._journal, self._failed, waiting)
        for start in range(0, len(keys), TOGETHER):
            some = keys[start : start + TOGETHER]
            for first in range(0, len(some), NAMED):
                self._pipeline.send(adding(some[first : first + NAMED]), removal.noted, self._seconds)
            self._pipeline.send(("UNLINK", *some), removal.removed, self._seconds)
            removal.owed += 1
        removal.again = partial(self._pipeline.send, ("UNLINK", JOURNAL, *keys), removal.removed, self._seconds)


class _Removal:
    """What one write has asked for."""

    __slots__ = ("_failed", "_journal", "_refused", "_waiting", "again", "owed")

    def __init__(
        self, journal: Journal, failed: Callable[[Exception], None], waiting: "list[asyncio.Future[None]]"
    ) -> None:
        self._journal = journal
        self._failed = failed
        self._waiting = waiting
        # Answers to come that lists were removed; and whether the journal has taken less than it was to.
        self.owed = 0
        self._refused = False
        # Removes everything, and the journal with it.
        self.again: Callable[[], None] | None = None

    def noted(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            self._refused = True
        elif reply is not None:
            self._journal.note(reply)

    def removed(self, reply: Any) -> None:
        self.owed -= 1
        if isinstance(reply, Exception):
            self._failed(reply)
            self.again = None
        if self.owed:
            return
        if self._refused and self.again is not None:
            # Somebody may have stored a list in between, which nobody does without a journal.
            again, self.again, self.owed = self.again, None, 1
            again()
            return
        self.again = None
        for each in self._waiting:
            if not each.done():
                each.set_result(None)
