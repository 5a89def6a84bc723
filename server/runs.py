"""One answer in the making: what it waits for, and where each part belongs when it is there (server/compiling.py)."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from types import CoroutineType
from typing import Any

from db.memberships import Membership
from resolvers.context import Context
from resolvers.facts import Facts
from resolvers.later import Later
from resolvers.reads import note
from resolvers.users import User
from resolvers.waiting import Answer
from server.compiled_values import Objects, Rendering

Made = dict[str, Any]
Variables = Mapping[str, Any]
Complete = Callable[[Any, "Run", Variables], Any]
# What is waited for, the object that it belongs into, under which key, and what completes it with these variables.
Wanted = tuple[Any, Made, str, Complete, Variables]
# The same of some users' memberships, each with an object of its own.
Memberships = tuple[Later, list[str], list[Any], str, Complete | Objects, Variables]


# They complete all that are alike at once.
OF_ALL = (Rendering, Objects)


class Run:
    """To resolvers it is the `info` that they get their context from."""

    __slots__ = ("_asked", "_begun", "_later", "_noted", "_tasks", "_waiting", "context", "field_name")

    def __init__(self, context: Context, field_name: str, noted: Facts) -> None:
        self.context = context
        # Those of the request.
        self._noted = noted
        # Of the first level: a mutation has one.
        self.field_name = field_name
        # Memberships that are to be asked for, and those that were, with who tells them all.
        self._later: list[Memberships] = []
        self._asked: list[tuple[list[Memberships], Answer]] = []
        # Everything else; how many of it were looked at, whether they are at work; and those that are.
        self._waiting: list[Wanted] = []
        self._begun = 0
        self._tasks: list[asyncio.Task[Any]] = []

    def resolve(self, value: Any, made: Made, key: str, complete: Complete, v: Variables) -> None:
        """Complete what a resolver gave, and put it into its place: now, or when it is there."""
        if type(value) is Later:
            self._later.append((value, [value.user_id], [made], key, complete, v))
        elif type(value) is CoroutineType:
            self._waiting.append((value, made, key, complete, v))
        else:
            made[key] = complete(value, self, v)

    def resolve_all(
        self,
        resolve: Callable[[Any], Any],
        records: Sequence[Any],
        made: list[Made],
        key: str,
        complete: Complete,
        v: Variables,
    ) -> None:
        """The same of each record of a list."""
        if not records:
            return
        value = resolve(records[0])
        if type(value) is Later and value.user_id == records[0].id:
            self._later.append((value, [record.id for record in records], made, key, complete, v))
        else:
            self._resolve_each(value, resolve, records, made, key, complete, v)

    def resolve_users(
        self, resolve: Callable[[Any], Any], records: Sequence[Any], key: str, objects: Objects, v: Variables
    ) -> list[Any]:
        """The objects of a list, each of which waits for no more than this: until it comes, users have their place."""
        if not records:
            return []
        value = resolve(records[0])
        if type(value) is Later and type(records[0]) is User and value.user_id == records[0].id:
            places = list(records)
            self._later.append((value, [record.id for record in records], places, key, objects, v))
            return places
        made = objects.begun(records, self, v)
        self._resolve_each(value, resolve, records, made, key, objects.complete, v)
        return made

    def _resolve_each(
        self,
        value: Any,
        resolve: Callable[[Any], Any],
        records: Sequence[Any],
        made: list[Made],
        key: str,
        complete: Complete,
        v: Variables,
    ) -> None:
        """The same; of the first record it is resolved already."""
        self.resolve(value, made[0], key, complete, v)
        for record, each in zip(islice(records, 1, None), islice(made, 1, None), strict=True):
            self.resolve(resolve(record), each, key, complete, v)

    def ask(self) -> None:
        """Ask for all memberships that were not asked for yet."""
        if not self._later:
            return
        wanted, self._later = self._later, []
        if len(wanted) == 1:
            later, users = wanted[0][:2]
            self._asked.append((wanted, self.context.services.reads.together(users, latest=later.latest)))
            return
        for latest in (False, True):
            some = [each for each in wanted if each[0].latest is latest]
            if some:
                users = [user_id for _, users, *_ in some for user_id in users]
                self._asked.append((some, self.context.services.reads.together(users, latest=latest)))

    def tell(self, told: Callable[[BaseException | None], None]) -> bool:
        """Call it as soon as everything is there, with None, or with why something is not: at once if need be.

        False: there is more to wait for than one answer about users' memberships, and nobody will be called.
        """
        if self._waiting or len(self._asked) != 1:
            return False
        asked, answer = self._asked[0]

        def complete() -> None:
            try:
                self._asked.clear()
                self._complete(asked, answer.result())
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # not handled here: whoever is told gets it
                self._close()
                told(error)
            else:
                told(None)

        answer.tell(complete)
        return True

    @property
    def is_finished(self) -> bool:
        """Whether nothing came of what was there that has to be waited for in its turn."""
        return not (self._later or self._asked or self._waiting)

    async def finish(self) -> None:
        """Wait for everything, and for what comes of it."""
        waiting, done = self._waiting, 0
        while True:
            self.ask()
            if self._asked:
                self._begin(done)
                asked, answer = self._asked.pop()
                self._complete(asked, await answer)
            elif done < len(waiting):
                value, made, key, complete, v = waiting[done]
                done += 1
                self._begin(done)
                made[key] = complete(await value, self, v)
            else:
                return

    def _complete(self, asked: list[Memberships], found: Sequence[list[Membership]]) -> None:
        if not asked[0][0].latest:
            note(found, self._noted)
        start = 0
        for later, users, objects, key, complete, v in asked:
            made_of = later.made_of(found if len(users) == len(found) else found[start : start + len(users)])
            start += len(users)
            if isinstance(complete, OF_ALL):
                complete.all(made_of, objects, key, self, v)
                continue
            for made, each in zip(objects, made_of, strict=True):
                made[key] = complete(each, self, v)

    def _begin(self, first: int) -> None:
        """All that is waited for from there on goes on meanwhile; the one before is waited for at once."""
        for place in range(max(first, self._begun), len(self._waiting)):
            value, made, key, complete, v = self._waiting[place]
            task = asyncio.create_task(value)
            self._tasks.append(task)
            self._waiting[place] = (task, made, key, complete, v)
        self._begun = len(self._waiting)

    async def abandon(self) -> None:
        """Leave nothing at work, and no failure that nobody has looked at: what was begun is not wanted any more."""
        self._close()
        for _, answer in self._asked:
            answer.cancel()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _close(self) -> None:
        """Begin nothing any more."""
        for value, *_ in self._waiting:
            if type(value) is CoroutineType:
                value.close()
