"""Who waits for which users' memberships, and how they are told."""

import asyncio
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

from db.memberships import Membership
from resolvers.selecting import BATCH


class Missed(list[Membership]):
    """Memberships that the cache had not."""


class Answer:
    """What one caller gets who has asked for some users' memberships: in the order asked.

    To await it takes a future and a turn of the event loop; to be told takes neither.
    """

    __slots__ = ("_told", "error", "found", "missing")

    def __init__(self, users: int) -> None:
        self.missing = users
        self.found: Sequence[list[Membership]] = ()
        # Then there will be no memberships.
        self.error: BaseException | None = None
        self._told: Callable[[], None] | None = None

    def done(self) -> bool:
        return not self.missing or self.error is not None

    def tell(self, told: Callable[[], None]) -> None:
        """Call it when it is done, at once if it is; it must not raise."""
        if self.done():
            told()
        else:
            self._told = told

    def result(self) -> Sequence[list[Membership]]:
        if self.error is not None:
            # It is raised for each who waits, and is not to remember all of them.
            raise self.error.with_traceback(None)
        return self.found

    def complete(self, found: Sequence[list[Membership]]) -> None:
        self.found, self.missing = found, 0
        self._tell()

    def set_exception(self, error: BaseException) -> None:
        self.error = error
        self._tell()

    def exception(self) -> BaseException | None:
        return self.error

    def cancel(self) -> None:
        if not self.done():
            self.set_exception(asyncio.CancelledError())

    def _tell(self) -> None:
        # Whoever is told knows us, and each would keep the other.
        told, self._told = self._told, None
        if told is not None:
            told()

    def __await__(self) -> Generator[Any, None, Sequence[list[Membership]]]:
        if not self.done():
            there = asyncio.get_running_loop().create_future()
            self._told = partial(_wake, there)
            yield from there
        return self.result()


def _wake(there: "asyncio.Future[None]") -> None:
    if not there.done():  # who waits may have been cancelled
        there.set_result(None)


class One(Answer):
    """Of one user. To whoever finds their memberships it is a future."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(1)

    def set_result(self, found: list[Membership]) -> None:
        self.complete([found])


class Place:
    """One of several users of an answer, and likewise a future."""

    __slots__ = ("answer", "position")

    def __init__(self, answer: Answer, position: int) -> None:
        self.answer = answer
        self.position = position

    def done(self) -> bool:
        return self.answer.done()

    def set_result(self, found: list[Membership]) -> None:
        answer = self.answer
        answer.found[self.position] = found  # type: ignore[index]  # its own until it is done
        if answer.missing == 1:
            answer.complete(answer.found)
        else:
            answer.missing -= 1

    def set_exception(self, error: Exception) -> None:
        self.answer.set_exception(error)

    def exception(self) -> BaseException | None:
        return self.answer.error

    def cancel(self) -> None:
        self.answer.cancel()


# Of one batch: who waits for each user's memberships. Each has a future of its own, for each may leave alone.
Waits = asyncio.Future[list[Membership]] | Place | One
Waiting = dict[str, list[Waits]]


def join(waiting: Waiting, user_ids: Sequence[str], answer: Answer) -> None:
    """Have them wait, each for its own, until all are there."""
    answer.found = [[]] * len(user_ids)
    for position, user_id in enumerate(user_ids):
        waiting.setdefault(user_id, []).append(Place(answer, position))


def batches(asked: Waiting) -> Iterator[Waiting]:
    if len(asked) <= BATCH:
        yield asked
        return
    users = iter(asked.items())
    while batch := dict(islice(users, BATCH)):
        yield batch


async def settle(batch: Waiting, work: Coroutine[None, None, None]) -> None:
    """Do the work, and let its failure be the answer of everyone in the batch who has none."""
    try:
        await work
    except Exception as error:  # noqa: BLE001  # it is not handled here: every caller that waits gets it
        fail(batch, error)
    except asyncio.CancelledError:
        for waiting in batch.values():
            for answer in waiting:
                answer.cancel()
        raise


def tell(waiting: list[Waits], found: list[Membership]) -> None:
    missed = Missed(found)
    for answer in waiting:
        if not answer.done():  # who has asked may have left
            answer.set_result(missed)


def fail(batch: Waiting, error: Exception) -> None:
    for waiting in batch.values():
        for answer in waiting:
            if not answer.done():
                answer.set_exception(error)
                answer.exception()  # a caller may have left; the failure is not lost with it
