"""Removing the lists of some users from Redis: what is to go at the same instant goes by the same commands."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from db.cache_format import key
from db.journal import JOURNAL, NAMED, Journal, adding
from db.pipeline import Answered, Part, Pipeline

# Keys of one command: Redis does nothing else meanwhile.
TOGETHER = 100


class Removals:
    """`failed` is told of an error after which nobody knows what Redis still holds."""

    def __init__(
        self, pipeline: Pipeline, journal: Journal, seconds: float, failed: Callable[[Exception], None]
    ) -> None:
        self._pipeline = pipeline
        self.journal = journal
        self._seconds = seconds
        self.failed = failed
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
        removal = _Removal(self, keys, self._waiting)
        self._users, self._waiting = [], []
        for start in range(0, len(keys), TOGETHER):
            some = keys[start : start + TOGETHER]
            for first in range(0, len(some), NAMED):
                self.ask(adding(some[first : first + NAMED]), removal.noted)
            removal.owed += 1
            self.ask(("UNLINK", *some), removal.removed)

    def ask(self, command: tuple[Part, ...], answered: Answered) -> None:
        self._pipeline.send(command, answered, self._seconds)


class _Removal:
    """What one write has asked for."""

    __slots__ = ("_failed", "_keys", "_refused", "_removals", "_waiting", "owed")

    def __init__(self, removals: Removals, keys: list[str], waiting: "list[asyncio.Future[None]]") -> None:
        self._removals = removals
        self._keys = keys
        self._waiting = waiting
        # Answers to come that lists were removed; whether one was not, and whether the journal has not taken all.
        self.owed = 0
        self._failed = self._refused = False

    def noted(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            self._refused = True
        elif reply is not None:
            self._removals.journal.note(reply)

    def removed(self, reply: Any) -> None:
        self.owed -= 1
        if isinstance(reply, Exception):
            self._failed = True
            self._removals.failed(reply)
        if self.owed:
            return
        if self._refused and not self._failed:
            # Somebody may have stored a list in between, which nobody does without a journal.
            self._refused, self.owed = False, 1
            self._removals.ask(("UNLINK", JOURNAL, *self._keys), self.removed)
            return
        for each in self._waiting:
            if not each.done():
                each.set_result(None)
