"""`python -m faults.planted BUG serve …`: the service with a promise's guard taken out, which a fault must show.

Nothing but these proofs starts it so.
"""

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

import db.journal
import resolvers.kept
import resolvers.reads
from db import connections, job_runs, operations
from db.memberships import Membership
from db.pipeline import Script
from resolvers import active, idempotency
from resolvers.catalogue import Catalogue
from resolvers.idempotency import Commit, Committed, Done, Operations, Request, Turn, Work
from server import cli

LATE_SECONDS = 5
BULK = {"addUsersToSegment", "removeUsersFromSegment", "changeMemberships"}


def claim_outside_the_transaction() -> None:
    """The key of a bulk change is used up before the change has happened."""
    whole = Operations._transact

    async def transact(self: Operations, request: Request, work: Work, own: set[int]) -> Done:
        if request.kind not in BULK:
            return await whole(self, request, work, own)
        async with self._writer.begin() as tx:
            operation_id = await idempotency._claim(tx, request)
            if operation_id is None:
                recorded = await operations.by_key(tx, request.client, request.key)
                assert recorded is not None
                # Somebody is at it, or has died of it: who can tell?
                outcome = recorded.result or {"added": {}, "updated": {}, "removed": {}, "excluded": {}, "unchanged": 0}
                return Done(outcome, replayed=recorded.id not in own)
            own.add(operation_id)
        async with self._writer.begin() as tx:
            outcome = await work(tx, operation_id)
            await operations.settle(tx, operation_id, outcome)
        return Done(outcome, replayed=False)

    Operations._transact = transact  # type: ignore[method-assign]


def unlink_before_commit() -> None:
    """Readers may store again what is about to change."""

    async def run(commit: Commit, committed: Committed, turn: Turn) -> Done:
        async with turn():
            try:
                await committed({})
                told = True
            except KeyError:  # what it tells depends on the outcome
                told = False
            done = await idempotency._persist(commit)
        if not told:
            await committed(done.outcome)
        return done

    idempotency._run = run


def fill_without_journal() -> None:
    """Whoever has read something stores it, whatever has happened since."""
    regardless = Script("""
        for i = 2, #KEYS do
          redis.call('SET', KEYS[i], ARGV[2 * i - 1], 'PX', ARGV[2 * i])
        end
        return {#KEYS - 1, ARGV[2]}
    """)
    db.journal.FILL = regardless


def expiry_not_checked_on_read() -> None:
    """A membership is over when somebody has tidied it away, some time."""

    def late(user_id: str, packed: bytes, now: int, catalogue: Catalogue, **rest: Any) -> list[Membership] | None:
        return active.active(user_id, packed, now - LATE_SECONDS * 1_000_000, catalogue, **rest)

    resolvers.kept.active = resolvers.reads.active = late  # type: ignore[attr-defined]


def purge_without_fence() -> None:
    """A purger that was frozen goes on where it was, whoever has taken its place."""
    job_runs.OURS = "job = :job AND slot = :slot"


def for_key_share() -> None:
    """An addition lets the deletion of its segment pass."""
    asyncio.run(_weaken())


async def _weaken() -> None:
    engine = create_async_engine(connections.url(os.environ["SEGMENTQL_DATABASE_URL"]))
    async with engine.begin() as tx:
        # All servers do this, one after the other.
        await tx.execute(text("SELECT pg_advisory_xact_lock(1)"))
        found = await tx.execute(
            text("SELECT pg_get_functiondef(oid) FROM pg_proc WHERE prosrc ~ 'ORDER BY id FOR SHARE'")
        )
        for (definition,) in found:
            weakened = definition.replace("ORDER BY id FOR SHARE", "ORDER BY id FOR KEY SHARE")
            # The queues stand before the rows and guard them, too.
            weakened = weakened.replace("pg_advisory_xact_lock_shared(hashtext('segments'), queue)", "queue")
            await tx.exec_driver_sql(weakened)
    await engine.dispose()


BUGS: dict[str, Callable[[], None]] = {
    each.__name__.replace("_", "-"): each
    for each in (
        claim_outside_the_transaction,
        unlink_before_commit,
        fill_without_journal,
        expiry_not_checked_on_read,
        purge_without_fence,
        for_key_share,
    )
}


if __name__ == "__main__":
    _, bug, *sys.argv[1:] = sys.argv
    BUGS[bug]()
    cli.main()
