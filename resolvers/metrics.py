"""What resolvers count, for Prometheus."""

from prometheus_client import Counter, Gauge

cache_lookups = Counter(
    "segmentql_cache_lookups_total",
    "Users whose memberships were asked for: hit in Redis, or miss, or bypass where the caller wanted the latest.",
    ["result"],
)
hits, misses, bypasses = (cache_lookups.labels(result) for result in ("hit", "miss", "bypass"))
refusals = Counter("segmentql_mutation_refusals_total", "Mutations that were refused, by the first code.", ["code"])
replays = Counter(
    "segmentql_mutation_replays_total", "Mutations that were answered as an earlier call with their key.", ["mutation"]
)
subscriptions = Gauge("segmentql_subscriptions_open", "Subscriptions that are open.")
