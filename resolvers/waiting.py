"""Who waits for which users' memberships, and how they are told."""

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from itertools import islice

from db.memberships import Membership
from resolvers.selecting import BATCH

# What one caller gets who has asked for many users' memberships: in the order asked.
Answer = asyncio.Future[Sequence[list[Membership]]]


class Missed(list[Membership]):
    """Memberships that the cache had not."""


class Together:
    """Several users' memberships that one caller waits for."""

    __slots__ = ("answer", "found", "missing")

    def __init__(self, answer: Answer, users: int) -> None:
        self.answer = answer
        self.found: list[list[Membership]] = [[]] * users
        self.missing = users


class Place:
    """One of them. To whoever finds them it is a future."""

    __slots__ = ("position", "together")

    def __init__(self, together: Together, position: int) -> None:
        self.together = together
        self.position = position

    def done(self) -> bool:
        return self.together.answer.done()

    def set_result(self, found: list[Membership]) -> None:
        together = self.together
        together.found[self.position] = found
        together.missing -= 1
        if not together.missing:
            together.answer.set_result(together.found)

    def set_exception(self, error: Exception) -> None:
        self.together.answer.set_exception(error)

    def exception(self) -> BaseException | None:
        return self.together.answer.exception()

    def cancel(self) -> None:
        self.together.answer.cancel()


# Of one batch: who waits for each user's memberships. Each has a future of its own, for each may leave alone.
Waits = asyncio.Future[list[Membership]] | Place
Waiting = dict[str, list[Waits]]


def join(waiting: Waiting, user_ids: Sequence[str], answer: Answer) -> None:
    """Have them wait, each for its own, until all are there."""
    together = Together(answer, len(user_ids))
    for position, user_id in enumerate(user_ids):
        waiting.setdefault(user_id, []).append(Place(together, position))


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
