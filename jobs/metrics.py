"""What the jobs count, for Prometheus."""

import time

from prometheus_client import Counter, Gauge
from sqlalchemy.ext.asyncio import AsyncEngine

from db import tasks
from db.tables import TaskKind, TaskStatus

tasks_finished = Counter("segmentql_tasks_finished_total", "Background tasks that this process finished.", ["kind"])
task_failures = Counter("segmentql_task_failures_total", "Attempts at background tasks that failed here.", ["kind"])
purge_removed = Counter("segmentql_purge_removed_total", "What the nightly purge removed in this process.", ["what"])
purge_failures = Counter("segmentql_purge_failures_total", "Runs of the nightly purge that failed in this process.")
# Of the last run that was finished anywhere: every process knows it from job_runs, and the largest is the newest.
purge_finished = Gauge("segmentql_purge_last_finished_timestamp_seconds", "When a purge was finished last.")
purge_duration = Gauge("segmentql_purge_last_duration_seconds", "How long that purge took.")
purge_last_removed = Gauge("segmentql_purge_last_removed", "How many that purge removed.", ["what"])
# Every process that works tasks off counts those of all: they are about the same everywhere, and never added up.
unfinished = Gauge("segmentql_tasks_unfinished", "Tasks that wait or run, anywhere.", ["kind", "status"])
oldest = Gauge(
    "segmentql_tasks_oldest_seconds", "For how long the oldest of them has been due or at work.", ["kind", "status"]
)
counted = Gauge("segmentql_tasks_counted_timestamp_seconds", "When this process counted them last: every minute.")


async def count_unfinished(engine: AsyncEngine) -> None:
    async with engine.connect() as conn:
        found = {(each.kind, each.status): each for each in await tasks.unfinished(conn)}
    for kind in TaskKind:
        for status in (TaskStatus.QUEUED, TaskStatus.RUNNING):
            each = found.get((kind, status))
            unfinished.labels(kind.value, status.value).set(each.tasks if each else 0)
            oldest.labels(kind.value, status.value).set(each.oldest_seconds if each else 0)
    counted.set(time.time())
