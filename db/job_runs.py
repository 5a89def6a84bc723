"""The runs of scheduled jobs: a row decides who runs a slot, and is the record of it."""

from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

# A runner that was not heard of for so long has died.
LEASE_SECONDS = 60
Stats = dict[str, int]


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is somebody's."""

    job: str
    slot: datetime
    attempt: int
    # How many of what so far; counts of runners that died are kept.
    stats: Stats = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that was finished, by whomever."""

    started_at: datetime
    finished_at: datetime
    stats: Stats


# Nothing is written, and nobody waits, once the slot is finished.
CLAIM = text(f"""
    WITH given_up AS (
        UPDATE job_runs SET state = 'FAILED', error = 'Its process stopped, and the next run took its place.'
        WHERE job = :job AND slot <> date_trunc('day', now(), 'UTC') AND state = 'RUNNING'
          AND heartbeat_at < now() - interval '{LEASE_SECONDS} seconds'
    )
    INSERT INTO job_runs AS run (job, slot, state, runner, started_at, heartbeat_at)
    SELECT :job, slot, 'RUNNING', :runner, now(), now()
    FROM (SELECT date_trunc('day', now(), 'UTC') AS slot) AS due
    WHERE NOT EXISTS (SELECT FROM job_runs WHERE job = :job AND slot = due.slot AND state = 'FINISHED')
    ON CONFLICT (job, slot) DO UPDATE
    SET state = 'RUNNING', runner = excluded.runner, attempt = run.attempt + 1, heartbeat_at = excluded.heartbeat_at,
        error = NULL
    WHERE run.state <> 'FINISHED' AND run.heartbeat_at < excluded.heartbeat_at - interval '{LEASE_SECONDS} seconds'
    RETURNING job, slot, attempt, stats
""").columns(stats=JSONB)


async def claim(tx: AsyncConnection, job: str, runner: str) -> Run | None:
    """Take the last midnight's run (UTC), by the database's clock, if nobody has finished it or is at it."""
    result = await tx.execute(CLAIM, {"job": job, "runner": runner})
    row = result.one_or_none()
    return None if row is None else Run(*row)


async def begin_by_hand(tx: AsyncConnection, job: str, runner: str) -> Run:
    """A run that nothing but a person has caused."""
    result = await tx.execute(
        text("""
            INSERT INTO job_runs (job, slot, state, runner, started_at, heartbeat_at)
            VALUES (:job, clock_timestamp(), 'RUNNING', :runner, now(), now()) RETURNING job, slot, attempt, stats
        """).columns(stats=JSONB),
        {"job": job, "runner": runner},
    )
    return Run(*result.one())


async def advance(tx: AsyncConnection, run: Run, what: str, number: int) -> int | None:
    """Count so many more, in the transaction that did them, and return how many of these there are by now.

    None when the run is somebody else's by now. Several may count at once.
    """
    result = await tx.execute(
        text(f"""
            UPDATE job_runs
            SET stats = stats || jsonb_build_object(
                    CAST(:what AS text), coalesce(CAST(stats ->> :what AS bigint), 0) + CAST(:number AS bigint)),
                heartbeat_at = now()
            WHERE {OURS} RETURNING CAST(stats ->> :what AS bigint)
        """),
        {**_whose(run), "what": what, "number": number},
    )
    return result.scalar_one_or_none()


async def finish(tx: AsyncConnection, run: Run) -> bool:
    """End it; False when the run is somebody else's by now."""
    return await _mine(tx, run, "heartbeat_at = now(), state = 'FINISHED', finished_at = clock_timestamp()")


async def fail(tx: AsyncConnection, run: Run, error: str) -> None:
    """Note why it failed. The next to claim it goes on."""
    await _mine(tx, run, "heartbeat_at = now(), state = 'FAILED', error = :error", error=error)


async def release(tx: AsyncConnection, run: Run) -> None:
    """Leave it, unfinished, to whoever comes next, at once."""
    await _mine(tx, run, "heartbeat_at = '-infinity'")


# The fence: whoever was away too long changes nothing.
OURS = "job = :job AND slot = :slot AND attempt = :attempt AND state = 'RUNNING'"


async def _mine(tx: AsyncConnection, run: Run, change: str, **values: object) -> bool:
    result = await tx.execute(text(f"UPDATE job_runs SET {change} WHERE {OURS}"), {**_whose(run), **values})
    return bool(result.rowcount)


def _whose(run: Run) -> dict[str, object]:
    return {"job": run.job, "slot": run.slot, "attempt": run.attempt}


async def last_finished(conn: AsyncConnection, job: str) -> Finished | None:
    """The run that ended last."""
    result = await conn.execute(
        text("""
            SELECT started_at, finished_at, stats FROM job_runs
            WHERE job = :job AND state = 'FINISHED' ORDER BY finished_at DESC LIMIT 1
        """).columns(stats=JSONB),
        {"job": job},
    )
    row = result.one_or_none()
    return None if row is None else Finished(*row)
