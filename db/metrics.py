"""What is counted of Redis, for Prometheus."""

from prometheus_client import Counter, Gauge

redis_available = Gauge("segmentql_redis_available", "1 while this process uses Redis, 0 while it does without.")
redis_left = Counter("segmentql_redis_left_total", "How often this process stopped using Redis until it answers again.")
redis_failures = Counter(
    "segmentql_redis_failures_total", "Commands that Redis did not answer in time, or not at all; probes included."
)
cache_fills = Counter("segmentql_cache_fills_total", "Users whose lists this process stored in Redis.")
cache_fills_refused = Counter(
    "segmentql_cache_fills_refused_total",
    "Users whose lists were not stored, as they may have been changed since.",
)
