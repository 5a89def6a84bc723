"""Tasks that are watched: all of them are read together, and whoever watches one is told when it has moved."""

from collections.abc import AsyncIterator, Hashable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from uuid import UUID

import orjson
from sqlalchemy.ext.asyncio import AsyncEngine

from db import tasks
from db.cache_format import TASK_CHANNEL
from db.channels import Channels
from db.tasks import Task
from resolvers.inbox import Inbox
from resolvers.looking import Looking


class WatchedTasks:
    def __init__(self, reader: AsyncEngine, channels: Channels) -> None:
        self._reader = reader
        self._channels = channels
        self._looking = Looking(self._look)
        self._inboxes: dict[str, set[Inbox[Task | None]]] = {}

    def __len__(self) -> int:
        return len(self._inboxes)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self._looking.running():
            yield

    def heard(self, task_id: str) -> None:
        """Somebody says that the task has moved."""
        if task_id in self._inboxes:
            self._looking.soon([task_id])

    def look_at_all(self) -> None:
        self._looking.soon(self._inboxes)

    @contextmanager
    def watching(self, task_id: UUID) -> Iterator[Inbox[Task | None]]:
        """The task as it is now, and after each look; None when it was forgotten. For as long as the block lasts."""
        # Only how it is now matters: nobody who reads slowly is owed what it was in between.
        inbox: Inbox[Task | None] = Inbox(1, _nothing, newest=True)
        name = str(task_id)
        if name not in self._inboxes:
            self._inboxes[name] = set()
            self._channels.add(TASK_CHANNEL + name)
        self._inboxes[name].add(inbox)
        # As looks go one after the other, nothing comes that is older than what came before.
        self._looking.soon([name])
        try:
            yield inbox
        finally:
            self._inboxes[name].discard(inbox)
            if not self._inboxes[name]:
                del self._inboxes[name]
                self._channels.remove(TASK_CHANNEL + name)

    async def _look(self, names: Sequence[str]) -> None:
        ids = [UUID(name) for name in names if name in self._inboxes]
        if not ids:
            return
        async with self._reader.connect() as conn:
            found = await tasks.of_files(conn, ids)
        for task_id in ids:
            for inbox in list(self._inboxes.get(str(task_id), ())):
                inbox.put(found.get(task_id))


def shown(task: Task) -> Hashable:
    """What of a task callers see moving."""
    return (
        task.status,
        task.rows_done,
        task.rows_total,
        task.started_at,
        task.finished_at,
        task.upload is None,
        None if task.state is None else orjson.dumps(task.state),
    )


def _nothing() -> None:
    pass
