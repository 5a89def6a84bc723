"""What a subscriber was not told yet: bounded, so that who reads slowly costs no more than anybody else."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

Message = TypeVar("Message")


class Inbox(Generic[Message]):
    """Holds up to `most` messages, after which the subscriber is `dropped`; or just the newest, where that says all."""

    def __init__(self, most: int, dropped: Callable[[], None], *, newest: bool = False) -> None:
        # There are thousands of inboxes, nearly always empty: an empty list takes a tenth of what an empty deque does.
        self._messages: list[Message] = []
        self._most = most
        self._newest = newest
        self._dropped = dropped
        # What the subscriber waits for, while it does.
        self._news: asyncio.Future[None] | None = None

    def put(self, message: Message) -> None:
        if self._newest:
            self._messages.clear()
        elif len(self._messages) >= self._most:
            self._messages.clear()
            self._dropped()
            return
        self._messages.append(message)
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def clear(self) -> None:
        """Forget what is there: the subscriber is about to be told more than that."""
        self._messages.clear()

    async def next(self) -> list[Message]:
        """All there is, the oldest first; at least one."""
        while not self._messages:
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        messages, self._messages = self._messages, []
        return messages
