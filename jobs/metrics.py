"""What the jobs count, for Prometheus."""

from prometheus_client import Counter, Gauge

tasks_finished = Counter("segmentql_tasks_finished_total", "Background tasks that this process finished.", ["kind"])
task_failures = Counter("segmentql_task_failures_total", "Attempts at background tasks that failed here.", ["kind"])
purge_removed = Counter("segmentql_purge_removed_total", "What the nightly purge removed in this process.", ["what"])
purge_failures = Counter("segmentql_purge_failures_total", "Runs of the nightly purge that failed in this process.")
# Of the last run that was finished anywhere: every process knows it from job_runs, and the largest is the newest.
purge_finished = Gauge("segmentql_purge_last_finished_timestamp_seconds", "When a purge was finished last.")
purge_duration = Gauge("segmentql_purge_last_duration_seconds", "How long that purge took.")
purge_last_removed = Gauge("segmentql_purge_last_removed", "How many that purge removed.", ["what"])
