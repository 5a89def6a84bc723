"""What a subscriber was not told yet: bounded, so that who reads slowly costs no more than anybody else."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Message = TypeVar("Message")


class Inbox(Generic[Message]):
    """Holds up to `most` messages, after which the subscriber is `dropped`; or just the newest, where that says all."""

    def __init__(self, most: int, dropped: Callable[[], None], *, newest: bool = False) -> None:
        self._messages: deque[Message] = deque(maxlen=1 if newest else None)
        self._most = most
        self._newest = newest
        self._dropped = dropped
        self._news = asyncio.Event()

    def put(self, message: Message) -> None:
        if len(self._messages) >= self._most and not self._newest:
            self._messages.clear()
            self._dropped()
            return
        self._messages.append(message)
        self._news.set()

    def clear(self) -> None:
        """Forget what is there: the subscriber is about to be told more than that."""
        self._messages.clear()

    async def next(self) -> list[Message]:
        """All there is, the oldest first; at least one."""
        while not self._messages:
            self._news.clear()
            await self._news.wait()
        messages = list(self._messages)
        self._messages.clear()
        return messages
