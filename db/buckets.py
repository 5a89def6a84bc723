"""Whom a rollout takes in: a number for each user in each segment, which decides without a row."""

import hashlib

# A rollout is counted in hundredths of a percent.
BUCKETS = 10_000


def bucket(seed: str, user_id: str) -> int:
    """0 to 9999, spread evenly over users and independent between seeds; a rollout above it takes the user in."""
    digest = hashlib.md5(f"{seed}:{user_id}".encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:4]) % BUCKETS


def sql(seed: str, user_id: str) -> str:
    """The same as an expression of PostgreSQL, of two others."""
    return f"CAST(CAST('x' || left(md5({seed} || ':' || {user_id}), 8) AS bit(32)) AS bigint) % {BUCKETS}"
