"""Importing a segment's members: the file is read into a table of its own, and then applied, some users at a time.

Every step notes how far it has come in the transaction that came so far, so whoever goes on does so just there.
"""

import asyncio
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from db import imports, partitions, segments, staging, tasks, transactions
from db.imports import Change
from jobs import output
from jobs.attempt import Attempt, BusyError, HopelessError, LostError
from jobs.import_lines import Lines, NoListError, Read
from jobs.import_state import State
from jobs.uploads import pieces

# Another import may hold the segment for much longer; then this one is put back.
PATIENCE, LOCK_TIMEOUT = "20s", "55P03"
# So much of the file is kept at a time; and beside requests.
BLOCK_LINES, BLOCK_LINES_BESIDE = 50_000, 3_000
# Users of one transaction, likewise: others who change the segment wait for so long.
CHUNK, CHUNK_BESIDE = 20_000, 1_000
# How much of the work reading is, for the progress shown.
READING = 0.4


async def work(attempt: Attempt) -> None:
    """Read, apply, and publish what was refused."""
    task_id = attempt.claim.id
    importing = await _begin(attempt)
    try:
        if not importing.state.read:
            await importing.read()
        await importing.apply()
    except NoListError as error:
        raise HopelessError(str(error)) from error
    attempt.rows_done = importing.rows_done
    await output.publish(attempt, partial(_rejects, task_id), counting=False)
    async with attempt.writer.begin() as tx:
        await staging.drop(tx, task_id)


async def _rejects(task_id: UUID, conn: AsyncConnection, write: output.Write) -> int:
    return await staging.write_rejects(conn, task_id, write)


async def _begin(attempt: Attempt) -> "_Import":
    """Where an earlier attempt has stopped, if there was one."""
    claim = attempt.claim
    # Of a large table it takes its time.
    async with attempt.importer.begin() as tx:
        state = State(**claim.state) if claim.state else State((await transactions.now(tx)).isoformat())
        await staging.make(tx, claim.id)
        if not state.applied and await staging.count(tx, claim.id) != state.rows:
            # The database crashed. What is applied stays so, and rejects are kept; rows are read again.
            await staging.empty(tx, claim.id)
            state.taken = state.lines = state.rows = 0
            state.read = False
    return _Import(attempt, state)


@dataclass(slots=True)
class _Import:
    attempt: Attempt
    state: State

    @property
    def mode(self) -> str:
        mode: str = self.attempt.claim.args["mode"]
        return mode

    @property
    def dry_run(self) -> bool:
        return bool(self.attempt.claim.args["dry_run"])

    @property
    def rows_done(self) -> int:
        return self.state.done(listed_removed=self.mode != "REPLACE")

    async def read(self) -> None:
        """Put the file's lines into tables."""
        state, begin = self.state, datetime.fromisoformat(self.state.begin)
        removing = self.mode == "REMOVE"
        until = None if removing else _expiry(self.attempt.claim.args, begin)
        lines = Lines(begin, until, not removing, state.taken, state.lines, tuple(state.columns))
        block, courtesy = Read(), self.attempt.courtesy
        upload = self.attempt.claim.upload
        assert upload is not None
        async for piece, part in pieces(self.attempt.files, upload, state.taken):
            async with courtesy.resting():
                # Not in the loop: requests may be answered there.
                block.extend(await asyncio.to_thread(lines.read, piece))
                state.progress = READING * part
                if lines.number - state.lines >= courtesy.step(BLOCK_LINES, BLOCK_LINES_BESIDE):
                    await self._keep(lines, block)
                    block = Read()
        block.extend(lines.read(b"", last=True))
        await self._keep(lines, block)
        async with self.attempt.importer.begin() as tx:
            again = state.read_once
            gone = await staging.sort(tx, self.attempt.claim.id, tell=not again)
            state.rows -= gone
            state.duplicate += 0 if again else gone
            state.read = state.read_once = True
            await self._note(tx)

    async def _keep(self, lines: Lines, block: Read) -> None:
        state = self.state
        new = [each for each in block.rejected if each.line > state.recorded]
        state.taken, state.lines, state.columns = lines.taken, lines.number, lines.columns
        state.header = lines.header or state.header
        state.rows += len(block.copied)
        state.invalid += len(new)
        state.recorded = max(state.recorded, state.lines)
        async with self.attempt.writer.begin() as tx:
            await self._note(tx)
            await staging.keep(tx, self.attempt.claim.id, "".join(block.copied).encode(), new)

    async def apply(self) -> None:
        state, cache = self.state, self.attempt.cache
        if self.mode == "REPLACE":
            _require_rows(state.rows)
        if self.mode == "REPLACE" and not self.dry_run:
            if state.applied:
                # Whoever did it was broken off, and nobody knows whom the cache was told of.
                await cache.renounce()
            else:
                await self._replace()
            return
        if (state.after or state.applied) and not self.dry_run:
            await self._tell_again()
        summarized = self.rows_done
        while not state.applied:
            async with self.attempt.courtesy.resting():
                await self._chunk()
                if not self.dry_run and self.rows_done - summarized >= CHUNK:
                    await self._summarize()
                    summarized = self.rows_done
        if self.mode == "REPLACE":
            _require_rows(state.added + state.updated + state.unchanged)

    async def _summarize(self) -> None:
        with suppress(DBAPIError):  # it only makes the next chunks faster
            async with self.attempt.writer.begin() as tx:
                await partitions.summarize(tx)

    async def _tell_again(self) -> None:
        """Whoever was broken off may not have told the cache of what it did last."""
        state, claim = self.state, self.attempt.claim
        async with self.attempt.importer.connect() as conn:
            users = await staging.users(conn, claim.id, state.before, None if state.applied else state.after)
        if users:
            await self.attempt.cache.invalidate(users)
        else:
            # The rows are gone with a crash of the database.
            await self.attempt.cache.renounce()

    async def _chunk(self) -> None:
        changed: list[str] = []
        try:
            await self._apply(changed)
        finally:
            # Also if the task was called off between the commit and this.
            await asyncio.shield(self.attempt.cache.invalidate(changed))

    async def _apply(self, changed: list[str]) -> None:
        """Do the next users, and tell whose lists have changed before it is committed."""
        state, task_id, courtesy = self.state, self.attempt.claim.id, self.attempt.courtesy
        async with self.attempt.importer.begin() as tx:
            if not self.dry_run:
                await transactions.take_long(tx)
            last = await staging.boundary(tx, task_id, state.after, courtesy.step(CHUNK, CHUNK_BESIDE))
            change = await self._change(tx)
            if self.dry_run:
                removing = self.mode == "REMOVE"
                applied = await imports.try_out(tx, task_id, change, state.after, last, removing=removing)
                if last is None and self.mode == "REPLACE":
                    applied = replace(applied, removed=await imports.count_unlisted(tx, task_id, change))
            else:
                write = imports.remove if self.mode == "REMOVE" else imports.add
                applied = await write(tx, task_id, change, state.after, last)
            changed += applied.user_ids
            state.count(applied)
            state.before, state.after, state.applied = state.after, last or state.after, last is None
            await self._note(tx)

    async def _replace(self) -> None:
        """All at once, for whoever reads one user, or many at once, from wherever."""
        state, task_id, cache = self.state, self.attempt.claim.id, self.attempt.cache
        told = False
        try:
            async with self.attempt.importer.begin() as tx:
                await transactions.take_long(tx)
                change = await self._change(tx)
                applied = await imports.replace(tx, task_id, change)
                _require_rows(applied.added + applied.updated + applied.unchanged)
                state.count(applied)
                state.applied = True
                await self._note(tx)
                await cache.close()
            async with self.attempt.exporter.connect() as conn:
                await staging.changed(conn, task_id, self._tell, CHUNK)
            told = True
        finally:
            await asyncio.shield(self._open(told=told))

    async def _tell(self, user_ids: list[str]) -> None:
        await self.attempt.cache.invalidate(user_ids)
        await self.attempt.cache.stay_closed()

    async def _open(self, *, told: bool) -> None:
        """Let everybody read from the cache again. It holds nothing if nobody knows whom it was told of."""
        if not told:
            await self.attempt.cache.renounce()
        await self.attempt.cache.open()

    async def _change(self, tx: AsyncConnection) -> Change:
        claim = self.attempt.claim
        assert claim.segment_id is not None
        segment = await segments.by_id(tx, claim.segment_id)
        if segment is None or segment.deleted_at is not None:
            raise HopelessError("The segment was deleted.")
        if self.dry_run:
            return Change(segment.id, segment.rollout is not None, await transactions.now(tx), None)
        try:
            held = (await segments.hold(tx, [segment.slug], PATIENCE)).get(segment.slug)
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != LOCK_TIMEOUT:
                raise
            raise BusyError from error
        if held is None or held.id != segment.id:
            raise HopelessError("The segment was deleted.")
        at = await segments.next_instant(tx, [held.id])
        return Change(held.id, held.rolled_out, at, claim.operation_id)

    async def _note(self, tx: AsyncConnection) -> None:
        """How far it has come, if it is still ours to come anywhere."""
        state = self.state
        if state.read:
            # Of what replaces a list it is not known before the end.
            done = self.rows_done - state.invalid
            state.progress = READING + (1 - READING) * min(1.0, done / max(1, state.rows))
        if not await tasks.keep(tx, self.attempt.claim, self.rows_done, asdict(state)):
            raise LostError
        self.attempt.rows_done = self.rows_done


def _expiry(args: dict[str, Any], begin: datetime) -> datetime | None:
    """Of rows that tell none of their own (resolvers/imports.py)."""
    if args["ttl_days"] is not None:
        return begin + timedelta(days=args["ttl_days"])
    if args["expires_at"] is None:
        return None
    until = datetime.fromisoformat(args["expires_at"])
    if until <= begin:
        raise HopelessError("expiresAt had passed when the work began: nothing was changed.")
    return until


def _require_rows(rows: int) -> None:
    """A list that replaces another one is not empty: it would remove everybody."""
    if not rows:
        raise HopelessError("The file has no row that counts: nothing was changed.")
