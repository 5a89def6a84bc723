"""Whether a hundred thousand ids by one mutation are about as fast as the bare statements."""

import asyncio
import time
from typing import Annotated

import asyncpg
import typer

from bench import databases, figures, processes, seeds
from bench.client import ERRORS, key
from bench.databases import Database
from bench.figures import Json, Results, middle, ratio, said

ROUNDS = 5
# Segments are numbered; those of the bare statements are others.
BARE = 1_000
ADD = f"""mutation ($input: AddUsersToSegmentInput!, $key: String!) {{
  addUsersToSegment(input: $input, idempotencyKey: $key) {{ added unchanged replayed {ERRORS} }} }}"""
MEMBERS = """
    INSERT INTO memberships (user_id, segment_id, added_at)
    SELECT user_id, $2, now() FROM unnest($1::text[]) AS user_id
"""
HISTORY = """
    INSERT INTO membership_events (user_id, segment_id, action, at, expires_at, operation_id)
    SELECT user_id, $2, 'ADDED', now(), 'infinity', 1 FROM unnest($1::text[]) AS user_id
"""


def measure(users: int = 100_000) -> Results:
    results = Results("bulk")
    with databases.running() as database:
        seeds.prepare(database)
        seeds.segments(database, 64)
        with processes.serving(database, tasks=0) as client:
            ours: list[float] = []
            theirs: list[float] = []
            replays: list[float] = []
            for place in range(ROUNDS + 1):
                ids = [seeds.user_id(place * users + n) for n in range(users)]
                request = {"slug": f"S{place + 1}", "userIds": ids}
                name = key()
                began = time.perf_counter()
                done = client.ask(ADD, input=request, key=name)["addUsersToSegment"]
                seconds = time.perf_counter() - began
                if (done["added"], done["replayed"]) != (users, False):
                    raise RuntimeError(f"the service answered {done}")
                bare = asyncio.run(_bare(database, ids, BARE + place))
                began = time.perf_counter()
                again = client.ask(ADD, input=request, key=name)["addUsersToSegment"]
                if (again["added"], again["replayed"]) != (users, True):
                    raise RuntimeError(f"the service answered {again}")
                if place == 0:
                    continue  # files are made, and caches filled
                replays.append(time.perf_counter() - began)
                ours.append(users / seconds)
                theirs.append(users / bare)
                said(f"mutation {ours[-1]:.0f}, bare {theirs[-1]:.0f} rows/s")
            before = database.sql("SELECT count(*) FROM memberships WHERE segment_id < 1000")
        results.raw |= {"mutation_rows_per_second": ours, "bare_rows_per_second": theirs, "replay_seconds": replays}
        results.add("mutation, median", middle(ours), "rows/s")
        results.add("bare SQL, median", middle(theirs), "rows/s")
        results.add("mutation / bare SQL, median of rounds", ratio(ours, theirs), least=0.8)
        results.add("a replay, median", middle(replays) * 1000, "ms")
        expected = (ROUNDS + 1) * users
        results.add("members after the replays", int(before), "rows", least=expected, most=expected)
    return results


async def _bare(database: Database, ids: list[str], segment_id: int) -> float:
    """Seconds that a client takes for the statements alone: the same rows, sorted, with the same indexes."""
    url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    conn = await asyncpg.connect(url)
    try:
        began = time.perf_counter()
        # In this order indexes are written fastest.
        members = sorted(ids)
        async with conn.transaction():
            await conn.execute(MEMBERS, members, segment_id)
            await conn.execute(HISTORY, members, segment_id)
        return time.perf_counter() - began
    finally:
        await conn.close()


def main(
    users: Annotated[int, typer.Option(help="How many ids one mutation has.")] = 100_000, json: Json = None
) -> None:
    figures.conclude([measure(users)], json)


if __name__ == "__main__":
    typer.run(main)
