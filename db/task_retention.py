"""Tasks whose time is over: first what they wait for, then their files, then they themselves."""

from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


async def give_up_uploads(tx: AsyncConnection, *, hours: int, limit: int) -> int:
    """Fail up to `limit` imports that have waited for their files longer than so many hours."""
    result = await tx.execute(
        text("""
            UPDATE tasks SET status = 'FAILED', error = :error, finished_at = clock_timestamp()
            WHERE id = ANY (ARRAY(
                SELECT id FROM tasks
                WHERE kind = 'IMPORT' AND status = 'QUEUED' AND upload IS NULL
                  AND created_at < now() - make_interval(hours => :hours)
                LIMIT :limit FOR UPDATE SKIP LOCKED
            ))
        """),
        {"hours": hours, "limit": limit, "error": f"No file was uploaded within {hours} hours."},
    )
    return result.rowcount


async def give_up_files(tx: AsyncConnection, *, days: int, limit: int) -> list[UUID]:
    """Note of up to `limit` tasks that their files are past so many days, and return their ids: no link leads there."""
    result = await tx.execute(
        text("""
            UPDATE tasks SET file_removed_at = clock_timestamp()
            WHERE id = ANY (ARRAY(
                SELECT id FROM tasks
                WHERE finished_at < now() - make_interval(days => :days) AND kind <> 'SEGMENT_CLEANUP'
                  AND status = 'SUCCEEDED' AND file_removed_at IS NULL
                ORDER BY finished_at LIMIT :limit FOR UPDATE SKIP LOCKED
            )) RETURNING id
        """),
        {"days": days, "limit": limit},
    )
    return list(result.scalars())


async def delete_finished(tx: AsyncConnection, *, days: int, limit: int) -> int:
    """Forget up to `limit` tasks that ended longer ago than so many days and have no file any more."""
    result = await tx.execute(
        text("""
            DELETE FROM tasks WHERE id = ANY (ARRAY(
                SELECT id FROM tasks
                WHERE finished_at < now() - make_interval(days => :days)
                  AND (kind = 'SEGMENT_CLEANUP' OR status <> 'SUCCEEDED' OR file_removed_at IS NOT NULL)
                ORDER BY finished_at LIMIT :limit FOR UPDATE SKIP LOCKED
            ))
        """),
        {"days": days, "limit": limit},
    )
    return result.rowcount
