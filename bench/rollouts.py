"""Whether a rollout takes in the share of users that it says, the same ones everywhere, and keeps them as it grows."""

import csv
import random
from array import array
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import typer

from bench import databases, figures, processes, seeds
from bench.client import CHANGE, ERRORS, Client, key
from bench.databases import Database
from bench.figures import Json, Results, said
from db import buckets

PERCENTAGES = (0, 0.01, 1, 10, 50, 99.99, 100)
# In points, of so many users: several times what chance does to them.
TOLERANCE = 0.2
# At this percentage some are removed, half of whom it has taken in.
REMOVING, REMOVED = 50, 20
PAGE = 100
ROLL_OUT = f"""mutation ($slug: String!, $input: UpdateSegmentInput!, $key: String!) {{
  updateSegment(slug: $slug, input: $input, idempotencyKey: $key) {{ {ERRORS} }} }}"""
INSIDE = """query ($ids: [ID!]!, $slug: String!) { users(ids: $ids) {
  isIn(slug: $slug) latest: segments(only: [$slug], freshness: LATEST) { slug } } }"""
IDS = f"SELECT {seeds.USER} AS user_id FROM generate_series(0, {{users}} - 1) AS u"


def measure(users: int = 1_000_000, sample: int = 2_000) -> Results:
    results = Results("rollouts")
    with databases.running() as database:
        seeds.prepare(database)
        with processes.serving(database, tasks=0) as client:
            for slug in ("A", "B"):
                client.create(slug)
            first, second = (database.sql(f"SELECT seed FROM segments WHERE slug = '{slug}'") for slug in "AB")
            found = _buckets(results, database, first, users)
            _shares(results, database, first, found)
            other = array("H", (buckets.bucket(second, user_id) for user_id in _users(database, users)))
            both = sum(one < buckets.BUCKETS / 2 > two for one, two in zip(found, other, strict=True))
            results.add("in two at 50 % each", both * 100 / users, "%", least=25 - TOLERANCE, most=25 + TOLERANCE)
            _api(results, client, first, random.sample(list(_users(database, users)), sample))
        results.add("differences that verify finds", database.differences(), most=0)
    return results


def _users(database: Database, users: int) -> list[str]:
    with database.rows(IDS.format(users=users)) as lines:
        return [row[0] for row in csv.reader(lines)]


def _buckets(results: Results, database: Database, seed: str, users: int) -> Sequence[int]:
    """Of all users, in the order of their numbers, by Python; how many others there are by SQL is told."""
    found, differing = array("H"), 0
    expression = buckets.sql(f"'{seed}'", "user_id")
    with database.rows(f"SELECT user_id, {expression} FROM ({IDS.format(users=users)}) AS users") as lines:
        for user_id, by_sql in csv.reader(lines):
            bucket = buckets.bucket(seed, user_id)
            differing += bucket != int(by_sql)
            found.append(bucket)
    results.add("users", len(found), least=users, most=users)
    results.add("of them in another bucket by SQL than by Python", differing, most=0)
    return found


def _shares(results: Results, database: Database, seed: str, found: Sequence[int]) -> None:
    users, inside = len(found), [0] * buckets.BUCKETS
    for bucket in found:
        inside[bucket] += 1
    expression = buckets.sql(f"'{seed}'", "user_id")
    for percent in PERCENTAGES:
        rollout = round(percent * 100)
        by_python = sum(inside[:rollout])
        by_sql = database.sql(
            f"SELECT count(*) FROM ({IDS.format(users=users)}) AS users WHERE {expression} < {rollout}"
        )
        # None and all are exact.
        within = TOLERANCE if 0 < rollout < buckets.BUCKETS else 0.0
        share = by_python * 100 / users
        results.add(f"{percent} % takes in", share, "%", least=percent - within, most=percent + within)
        results.add(f"{percent} %, by SQL", int(by_sql), "users", least=by_python, most=by_python)


def _api(results: Results, client: Client, seed: str, sample: list[str]) -> None:
    """Through the service: it takes in whom the hash does, but those who were removed."""
    places = {user_id: buckets.bucket(seed, user_id) for user_id in sample}
    removed: set[str] = set()
    seen: list[set[str]] = []
    differing = asked = 0
    for percent in PERCENTAGES:
        input = {"rolloutPercent": percent}
        client.ask(ROLL_OUT, slug="A", input=input, key=key())
        if percent == REMOVING:
            removed = _remove(client, places)
        expected = {user_id for user_id, place in places.items() if place < round(percent * 100)} - removed
        cached, latest = _inside(client, sample)
        differing += len(expected ^ cached) + len(expected ^ latest)
        asked += 2 * len(sample)
        seen.append(cached)
        said(f"{percent} %: {len(cached)} of {len(sample)}")
    lost = sum(len(earlier - removed - later) for earlier, later in pairwise(seen))
    results.add("answers of the service compared with the hash", asked)
    results.add("that differ", differing, most=0)
    results.add("users whom raising it loses", lost, most=0)
    results.add("removed ones that are in at 100 %", len(removed & seen[-1]), most=0)
    expected_in = len(sample) - len(removed)
    results.add("others that are in at 100 %", len(seen[-1]), least=expected_in, most=expected_in)


def _remove(client: Client, places: dict[str, int]) -> set[str]:
    half = REMOVED // 2
    ordered = sorted(places, key=lambda user_id: places[user_id])
    # Those that are surest to be in, and surest to be out: of both, at once.
    removed = {*ordered[:half], *ordered[-half:]}
    for user_id in removed:
        client.ask(CHANGE, input={"userId": user_id, "remove": ["A"]}, key=key())
    return removed


def _inside(client: Client, sample: list[str]) -> tuple[set[str], set[str]]:
    """Who is in, as the cache says, and as the database does."""
    cached: set[str] = set()
    latest: set[str] = set()
    for start in range(0, len(sample), PAGE):
        ids = sample[start : start + PAGE]
        for user_id, user in zip(ids, client.ask(INSIDE, ids=ids, slug="A")["users"], strict=True):
            if user["isIn"]:
                cached.add(user_id)
            if user["latest"]:
                latest.add(user_id)
    return cached, latest


def main(
    users: Annotated[int, typer.Option(help="How many users the shares are taken of.")] = 1_000_000,
    sample: Annotated[int, typer.Option(help="How many of them the service is asked about.")] = 2_000,
    json: Json = None,
) -> None:
    figures.conclude([measure(users, sample)], json)


if __name__ == "__main__":
    typer.run(main)
