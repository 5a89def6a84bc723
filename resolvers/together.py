"""One future for the memberships of many users: a hundred of them would be most of the work of reading so many."""

import asyncio

from db.memberships import Membership


class Together:
    """Several users' memberships that one caller waits for."""

    __slots__ = ("answer", "found", "missing")

    def __init__(self, answer: "asyncio.Future[list[list[Membership]]]", users: int) -> None:
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
