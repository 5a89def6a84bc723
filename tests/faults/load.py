"""What everybody asks meanwhile: reads, changes of one user, changes of many, and segments that come and go."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from faults import asking
from faults.history import Outcome, Read, Register, Value, Write
from faults.processes import Process
from faults.stack import Stack

USERS = [f"user-{number}" for number in range(24)]
SLUGS = [f"S{number}" for number in range(6)]
CALLERS = 6
# How long each of them thinks, at most.
THINKING_SECONDS = 0.08
# What a client tries again by itself; what is not known then is settled when the faults are over.
ATTEMPTS = 5
SETTLING_SECONDS = 60
TWICE = 0.2
# Every addition has an expiry of its own, from then on.
FIRST = asking.microseconds("2090-01-01T00:00:00Z")


class Load:
    def __init__(self, stack: Stack) -> None:
        self.stack, self.history, self.random = stack, stack.history, stack.random
        self._numbers = itertools.count(1)
        # By key, what is asked for.
        self._inputs: dict[str, object] = {}
        self._stopping = False
        # How many of the changes of one user end while we look.
        self.soon = 0.1

    async def prepare(self) -> None:
        for slug in SLUGS:
            created = await self.write("createSegment", {"slug": slug}, {})
            assert created.outcome is Outcome.OK, created.attempts

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        callers = [asyncio.create_task(self._call()) for _ in range(CALLERS)]
        try:
            yield
        finally:
            self._stopping = True
            # What went wrong in a caller is a mistake of ours, and nobody's finding.
            await asyncio.gather(*callers)

    async def _call(self) -> None:
        mix: list[tuple[Callable[[], Awaitable[object]], int]] = [
            (self.read_somebody, 70),
            (self.change_somebody, 24),
            (self.change_many, 5),
            (self.come_and_go, 1),
        ]
        kinds, weights = zip(*mix, strict=True)
        while not self._stopping:
            (kind,) = self.random.choices(kinds, weights)
            await kind()
            await asyncio.sleep(self.random.uniform(0, THINKING_SECONDS))

    async def read_somebody(self) -> None:
        await self.read(self.stack.somebody(), self.random.choice(USERS), latest=self.random.random() < 0.1)

    async def change_somebody(self) -> Write:
        slugs = self.random.sample(SLUGS, self.random.randint(1, 3))
        middle = self.random.randint(0, len(slugs))
        add, remove = slugs[:middle], slugs[middle:]
        soon = self.random.random() < self.soon
        value = self._soon() if soon else self.value()
        user = self.random.choice(USERS)
        return await self.change(user, add, remove, value)

    async def change(
        self, user: str, add: list[str], remove: list[str], value: int, process: Process | None = None
    ) -> Write:
        input: dict[str, Any] = {"userId": user, "add": add, "remove": remove}
        input |= {"expiresAt": asking.instant(value)} if add else {}
        sets: dict[Register, Value] = {(user, slug): value for slug in add} | {(user, slug): None for slug in remove}
        return await self.write("changeUserSegments", input, sets, process)

    async def change_many(self) -> Write:
        users, slug, value = self.random.sample(USERS, 8), self.random.choice(SLUGS), self.value()
        kind = self.random.choice(["addUsersToSegment", "removeUsersFromSegment", "changeMemberships"])
        if kind == "removeUsersFromSegment":
            return await self.write(kind, {"slug": slug, "userIds": users}, {(user, slug): None for user in users})
        ending = {"expiresAt": asking.instant(value)}
        sets: dict[Register, Value] = {(user, slug): value for user in users}
        if kind == "addUsersToSegment":
            return await self.write(kind, {"slug": slug, "userIds": users} | ending, sets)
        other = self.random.choice([each for each in SLUGS if each != slug])
        changes = [{"userId": user, "add": [slug], "remove": [other]} | ending for user in users]
        return await self.write(kind, {"changes": changes}, sets | {(user, other): None for user in users})

    async def come_and_go(self) -> None:
        """A segment is made, filled and deleted; nobody is in it then."""
        slug, users, value = f"C{next(self._numbers)}", self.random.sample(USERS, 3), self.value()
        if (await self.write("createSegment", {"slug": slug}, {})).outcome is not Outcome.OK:
            return
        input = {"slug": slug, "userIds": users, "expiresAt": asking.instant(value)}
        await self.write("addUsersToSegment", input, {(user, slug): value for user in users})
        await self.read(self.stack.somebody(), users[0])
        await self.write("deleteSegment", slug, {(user, slug): None for user in users})
        for user in users:
            await self.read(self.stack.somebody(), user)

    def value(self) -> int:
        return FIRST + next(self._numbers)

    def _soon(self) -> int:
        return int((time.time() + self.random.uniform(0.5, 2)) * 1e6)

    def _key(self) -> str:
        return f"fault-key-{next(self._numbers)}"

    async def read(self, process: Process, user: str, *, latest: bool = False) -> Read:
        attempt, found = await asking.read(process, user, latest=latest)
        self.history.reads.append(read := Read(user, attempt, found, latest))
        return read

    async def write(
        self, field: str, input: object, sets: Mapping[Register, Value], process: Process | None = None
    ) -> Write:
        """As clients do: try again while nobody knows, with the same key; and one in five sends it twice anyway."""
        write = self.begin(field, input, sets)
        copies = 2 if self.random.random() < TWICE else 1
        for number in range(ATTEMPTS):
            targets = [process or self.stack.somebody() for _ in range(copies)]
            await asyncio.gather(*(self.attempt(each, write) for each in targets))
            if write.outcome is Outcome.OK or _refused(write):
                break
            copies = 1
            await asyncio.sleep(self.random.uniform(0, 0.1 * 2**number))
        return write

    def begin(self, field: str, input: object, sets: Mapping[Register, Value]) -> Write:
        write = Write(self._key(), field, dict(sets))
        self._inputs[write.key] = input
        self.history.writes.append(write)
        return write

    async def attempt(self, process: Process, write: Write) -> None:
        write.attempts.append(await asking.mutate(process, write.kind, self._inputs[write.key], write.key))

    async def settle(self) -> None:
        """Ask for every key whose fate nobody knows, until somebody does."""
        until = time.monotonic() + SETTLING_SECONDS
        for write in self.history.writes:
            while write.outcome is not Outcome.OK and not _refused(write):
                if time.monotonic() > until:
                    self.stack.broken.append(f"nobody can tell what became of {write.key}: {write.attempts[-1].error}")
                    break
                await self.attempt(self.stack.somebody(), write)


def _refused(write: Write) -> bool:
    """Whether the last word was a refusal. What an earlier attempt may have come to stays unknown."""
    last = write.attempts[-1]
    return last.outcome is Outcome.FAIL and not last.error.startswith("not connected")
