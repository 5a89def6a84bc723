"""Where the files of tasks are kept: in a local folder, or in a bucket."""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import obstore
from obstore.store import LocalStore, S3Store

from db.tables import TaskKind

if TYPE_CHECKING:
    from obstore import AsyncWritableFile
    from obstore.store import ObjectStore

REPORTS = "reports"
S3 = "s3://"
# Of one file at most so much is in memory, twice. A bucket takes 10 000 parts of this size: 80 GB.
PART_BYTES = 8 * 1024 * 1024
CSV = {"Content-Type": "text/csv; charset=utf-8"}
FULL = ("No space left on device", "Disk quota exceeded", "File too large")
# How many are looked at at once.
PAGE = 100
# What the bucket's errors say further down is for the log.
DETAILS = "\n\nDebug source:"
# What a store answers when it cannot.
ERRORS = (OSError, obstore.exceptions.BaseError)


class NotStored(Exception):  # an answer of the store, with its reason
    """What could not be written. `full` when trying again would not help."""

    def __init__(self, error: Exception) -> None:
        self.reason = str(error).split(DETAILS, maxsplit=1)[0].strip()
        self.full = any(sign in self.reason for sign in FULL)
        super().__init__(self.reason)


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept for a task."""

    task_id: UUID
    modified_at: datetime


@contextmanager
def _storing() -> Iterator[None]:
    try:
        yield
    except ERRORS as error:
        raise NotStored(error) from error


@dataclass(frozen=True, slots=True)
class Writing:
    """A file that is being written."""

    writer: "AsyncWritableFile"

    async def write(self, chunk: bytes) -> None:
        """Take the bytes, when there is room for them. Raises NotStored."""
        with _storing():
            await self.writer.write(chunk)


def path(task_id: UUID, attempt: int) -> str:
    """Where an attempt writes. Every attempt has a file of its own; the task's row says which one counts."""
    return f"{REPORTS}/{task_id}/{attempt}.csv"


def upload_path(task_id: UUID) -> str:
    """A place for what is uploaded for a task, a new one at each call."""
    return f"{REPORTS}/{task_id}/upload-{secrets.token_hex(8)}"


NAMES = {TaskKind.REPORT: "report", TaskKind.EXPORT: "members", TaskKind.IMPORT: "rejects"}


def name(task_id: UUID, kind: TaskKind) -> str:
    """What a downloaded file is called."""
    return f"segmentql-{NAMES[kind]}-{task_id}.csv"


class Files:
    """`where` is a folder, or `s3://bucket/prefix`; the bucket's keys and endpoint are found as AWS's own tools do."""

    def __init__(self, where: str) -> None:
        self._store: ObjectStore | None = None
        self._folder: Path | None = None
        if where.startswith(S3):
            bucket, _, prefix = where.removeprefix(S3).partition("/")
            self._store = S3Store(bucket, prefix=prefix or None)
        else:
            self._folder = Path(where).resolve()

    def prepare(self) -> None:
        """See that a folder is there and can be written to; raises OSError. A bucket is asked when it is needed."""
        if self._folder is None:
            return
        reports = self._folder / REPORTS
        reports.mkdir(mode=0o700, parents=True, exist_ok=True)
        trial = reports / f".{secrets.token_hex(8)}"
        trial.touch()
        trial.unlink()
        self._store = LocalStore(self._folder)

    def _opened(self) -> "ObjectStore":
        """A process that does not make files prepares nothing, and may be sent some."""
        if self._store is None:
            self.prepare()
        assert self._store is not None
        return self._store

    @asynccontextmanager
    async def writing(self, path: str, download_name: str) -> AsyncIterator["Writing"]:
        """The file is there when the block ends, whole; when it ends by an error nothing is. Raises NotStored."""
        attributes = None
        if self._folder is None:
            attributes = {**CSV, "Content-Disposition": f'attachment; filename="{download_name}"'}
        with _storing():
            store = self._opened()
        writer = obstore.open_writer_async(
            store, path, buffer_size=PART_BYTES, max_concurrency=2, attributes=attributes
        )
        try:
            yield Writing(writer)
        except BaseException as error:
            # Not closed, and so not there.
            await writer.__aexit__(type(error), error, error.__traceback__)
            raise
        with _storing():
            await writer.close()
            await asyncio.to_thread(self._keep, path)

    def _keep(self, path: str) -> None:
        """Have the disk write it down, so that it outlives a power cut as the row does that will speak of it."""
        if self._folder is None:
            return
        file = self._folder / path
        for each in (file, file.parent, file.parent.parent):
            descriptor = os.open(each, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    async def size(self, path: str) -> int | None:
        """How many bytes it has; None when it is not there."""
        try:
            return (await obstore.head_async(self._opened(), path))["size"]
        except FileNotFoundError:
            return None

    async def reading(self, path: str, start: int = 0, chunk_bytes: int = PART_BYTES) -> AsyncIterator[bytes]:
        """Its bytes from `start` on, about so many at a time."""
        if start and start >= (await obstore.head_async(self._opened(), path))["size"]:
            return
        options: obstore.GetOptions | None = {"range": {"offset": start}} if start else None
        async for chunk in (await obstore.get_async(self._opened(), path, options=options)).stream(chunk_bytes):
            yield bytes(chunk)

    def local(self, path: str) -> Path | None:
        """The file in the folder; None when it is in a bucket."""
        return None if self._folder is None else self._folder / path

    async def link(self, path: str, seconds: int) -> str | None:
        """A link to it that the bucket itself answers, for so long; None when we have to."""
        if self._folder is not None or not isinstance(self._store, S3Store):
            return None
        return await obstore.sign_async(self._store, "GET", path, timedelta(seconds=seconds))

    async def discard(self, path: str) -> None:
        """Remove one file, if it is there."""
        with suppress(FileNotFoundError):
            await obstore.delete_async(self._opened(), path)

    async def remove(self, task_id: UUID, *, but: int | None = None) -> int:
        """Remove what was kept for the task, but for that attempt's file, and return how many files that were."""
        kept = None if but is None else path(task_id, but)
        if self._folder is not None:
            return await asyncio.to_thread(_remove, self._folder / REPORTS / str(task_id), kept and Path(kept).name)
        found = [entry["path"] async for page in self._list(f"{REPORTS}/{task_id}/") for entry in page]
        gone = [each for each in found if each != kept]
        for each in gone:
            with suppress(FileNotFoundError):
                await obstore.delete_async(self._opened(), each)
        return len(gone)

    async def remove_attempt(self, task_id: UUID, attempt: int) -> None:
        """Remove what an attempt has written."""
        if self._folder is not None:
            folder = self._folder / REPORTS / str(task_id)
            await asyncio.to_thread(_remove_attempt, folder, Path(path(task_id, attempt)).name)
            return
        with suppress(FileNotFoundError):
            await obstore.delete_async(self._opened(), path(task_id, attempt))

    async def kept(self) -> AsyncIterator[list[Kept]]:
        """Everything that is kept, some tasks at a time; a task may come twice."""
        if self._folder is not None:
            for some in await asyncio.to_thread(_kept, self._folder / REPORTS):
                yield some
            return
        async for page in self._list(f"{REPORTS}/"):
            found = [(_task_id(entry["path"].split("/")[-2]), entry["last_modified"]) for entry in page]
            yield [Kept(task_id, modified_at) for task_id, modified_at in found if task_id is not None]

    async def _list(self, prefix: str) -> AsyncIterator[list["obstore.ObjectMeta"]]:
        async for page in obstore.list(self._opened(), prefix, chunk_size=PAGE):
            yield list(page)


# obstore neither lists nor removes what a killed writer has left under a passing name: so a folder is looked into here.


def _remove(folder: Path, but: str | None) -> int:
    gone = [each for each in folder.glob("*") if each.name != but]
    for each in gone:
        each.unlink(missing_ok=True)
    with suppress(OSError):  # it is not empty, or not there
        folder.rmdir()
    return len(gone)


def _remove_attempt(folder: Path, file_name: str) -> None:
    for each in folder.glob(f"{file_name}*"):
        each.unlink(missing_ok=True)
    with suppress(OSError):  # another attempt writes there
        folder.rmdir()


def _kept(reports: Path) -> list[list[Kept]]:
    found = []
    for folder in reports.iterdir():
        task_id = _task_id(folder.name)
        if task_id is not None:
            with suppress(FileNotFoundError):  # it is just being removed
                found.append(Kept(task_id, datetime.fromtimestamp(folder.stat().st_mtime, UTC)))
    return [found[start : start + PAGE] for start in range(0, len(found), PAGE)]


def _task_id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
