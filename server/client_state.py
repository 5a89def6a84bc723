"""Idempotency keys that outlive the process: what was begun is continued, not repeated."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from uuid import uuid4

from server.client import Failed, Json, Refused


class Over(Failed):
    """A task that gives no result any more. Its key is of no use: the next run begins anew."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} The same command begins anew.")


@dataclass(frozen=True, slots=True)
class Kept:
    """One intention, as its file has it."""

    command: str
    url: str
    # What the mutation was, or will be, sent with: the same each time, or the key would not be taken again.
    input: Json
    key: str
    # Known once the mutation was answered.
    task_id: str | None = None


Keeping = AbstractContextManager[tuple[Path, Kept]]


@contextmanager
def keeping(folder: Path, command: str, url: str, input: Json, file_sha256: str = "") -> Iterator[tuple[Path, Kept]]:
    """The key of an intention, new or from an earlier run, and where it is kept: before anything is sent, and until
    the block ends well or says that the key is of no use.
    """
    intention = json.dumps([url, command, input, file_sha256], sort_keys=True)
    path = folder / f"{hashlib.sha256(intention.encode()).hexdigest()}.json"
    kept = _kept(path, Kept(command, url, input, f"segmentql-{command}-{uuid4()}"))
    try:
        yield path, kept
    except (Refused, Over):
        _drop(path, kept)
        raise
    _drop(path, kept)


def begun(path: Path, kept: Kept, task_id: str) -> None:
    """Keep the task, too: it is remembered for longer than its key."""
    with _written(path.parent, replace(kept, task_id=task_id)) as new:
        new.replace(path)


def folder(environ: Mapping[str, str]) -> Path:
    if own := environ.get("SEGMENTQL_STATE_DIR"):
        return Path(own)
    if state := environ.get("XDG_STATE_HOME"):
        return Path(state) / "segmentql"
    return Path.home() / ".local" / "state" / "segmentql"


def _kept(path: Path, new: Kept) -> Kept:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _written(path.parent, new) as written, suppress(FileExistsError):
            # Of two that begin at once one comes first, and both have its key.
            path.hardlink_to(written)
        return _read(path)
    except OSError as error:
        where = f"The key cannot be kept in {path.parent} (SEGMENTQL_STATE_DIR)"
        raise Failed(f"{where}: {error.strerror or error}.") from error


@contextmanager
def _written(folder: Path, kept: Kept) -> Iterator[Path]:
    """A file beside the others, to be given its name within the block. That lasts, even if the power fails."""
    path = folder / f"{uuid4()}.new"
    try:
        # For nobody else: what is asked for may be personal.
        with open(path, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:  # pathlib's has no opener
            json.dump(asdict(kept), file)
            file.flush()
            os.fsync(file.fileno())
        yield path
    finally:
        path.unlink(missing_ok=True)
    _sync(folder)


def _read(path: Path) -> Kept:
    try:
        return Kept(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise Failed(f"{path} cannot be read. Remove it to begin anew.") from error


def _drop(path: Path, kept: Kept) -> None:
    # A twin may have finished first, and the file be another intention's by now.
    with suppress(FileNotFoundError):
        if _read(path).key == kept.key:
            path.unlink()
            _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
