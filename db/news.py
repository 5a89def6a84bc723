"""Telling those who watch that there is news: a hint, in the same write as what comes next. Nobody relies on it."""

from collections.abc import Iterable
from uuid import UUID

from db.cache_format import CATALOGUE_CHANNEL, TASK_CHANNEL, USER_CHANNEL
from db.pipeline import Pipeline


class News:
    """To be told after the commit. What becomes of it is not waited for."""

    def __init__(self, pipeline: Pipeline, seconds: float) -> None:
        self._pipeline = pipeline
        self._seconds = seconds

    def of_users(self, user_ids: Iterable[str]) -> None:
        for user_id in user_ids:
            self._tell(USER_CHANNEL + user_id)

    def of_task(self, task_id: UUID) -> None:
        self._tell(f"{TASK_CHANNEL}{task_id}")

    def of_segments(self) -> None:
        self._tell(CATALOGUE_CHANNEL)

    def _tell(self, channel: str) -> None:
        self._pipeline.send(("PUBLISH", channel, ""), None, self._seconds)
