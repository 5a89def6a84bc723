"""Files on their way to the server and back: never whole in memory, and checked."""

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self
from uuid import uuid4

import httpx

from server.client import Again, Failed, Json, check_status, shown, unreachable
from server.client_state import Over

CHUNK = 256 * 1024
# A server may store a file before it says that it has it.
SECONDS = httpx.Timeout(120, connect=10)
# What is worth asking for a new link: this one has expired, or is that of a task that has gone on.
OTHER_LINK = (httpx.codes.FORBIDDEN, httpx.codes.NOT_FOUND)


@dataclass(frozen=True, slots=True)
class Source:
    """A file to upload, as it was when the command began."""

    path: Path
    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path, show: Callable[[int], None]) -> Self:
        digest, done = hashlib.sha256(), 0
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                done += len(chunk)
                show(done)
        return cls(path, done, digest.hexdigest())

    def chunks(self, show: Callable[[int], None]) -> Iterator[bytes]:
        """The last one only if the file is still the same, so that another is never taken for it."""
        digest, done = hashlib.sha256(), 0
        with self.path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                done += len(chunk)
                if done > self.size or (done == self.size and digest.hexdigest() != self.sha256):
                    raise self._changed()
                yield chunk
                show(done)
        if done != self.size:
            raise self._changed()

    def _changed(self) -> Over:
        return Over(f"{self.path} was changed while it was sent; nothing of it was taken.")


def upload(http: httpx.Client, url: str, source: Source, show: Callable[[int], None]) -> None:
    """Send the file, from its beginning. Raises Again when that broke: ask whether another link is needed."""
    show(0)
    headers = {"Content-Length": str(source.size), "Content-Type": "text/csv"}
    try:
        answer = http.put(url, content=source.chunks(show), headers=headers, timeout=SECONDS)
    except httpx.TransportError as error:
        raise unreachable(url, error) from error
    check_status(url, answer)
    if answer.status_code in OTHER_LINK:
        raise Again(f"{shown(url)} answered with status {answer.status_code}.")
    if not answer.is_success:
        raise Over(f"{shown(url)} does not take the file (status {answer.status_code}): {_error(answer)}")
    if source.sha256 not in answer.text:
        raise Failed(f"{shown(url)} has received other bytes than were sent.")


def download(http: httpx.Client, file: Json, target: BinaryIO, show: Callable[[int], None]) -> None:
    """Write a task's file, from its beginning. Raises Again when that broke, or is not what the task says."""
    target.seek(0)
    target.truncate()
    url, digest, done = file["url"], hashlib.sha256(), 0
    show(0)
    try:
        with http.stream("GET", url, headers={"Accept-Encoding": "identity"}, timeout=SECONDS) as answer:
            check_status(url, answer)
            if answer.status_code in OTHER_LINK:
                raise Again(f"{shown(url)} answered with status {answer.status_code}.")
            if answer.status_code != httpx.codes.OK:
                raise Failed(f"{shown(url)} answered with status {answer.status_code}.")
            for chunk in answer.iter_bytes(CHUNK):
                target.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                show(done)
    except httpx.TransportError as error:
        raise unreachable(url, error) from error
    if (done, digest.hexdigest()) != (file["bytes"], file["sha256"]):
        raise Again(f"{shown(url)} sent other bytes than it promised.")


def _error(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, TypeError, KeyError):
        return "it does not say why."


@contextmanager
def delivered(path: Path | None) -> Iterator[BinaryIO]:
    """A file to write to, which takes its place, or is printed where there is none, once the block ends well."""
    if path is None:
        with tempfile.TemporaryFile() as file:
            yield file
            file.seek(0)
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        return
    # Beside its place, whatever a link there points at.
    path = path.resolve()
    new = path.with_name(f".{uuid4()}.part")
    try:
        with new.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
