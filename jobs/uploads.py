"""What was uploaded for an import, piece by piece, packed or not."""

import asyncio
import zlib
from collections.abc import AsyncIterator
from typing import Any

from db.files import Files
from jobs.import_lines import NoListError

PIECE_BYTES = 64 * 1024
# No list of users is so alike. What is made to be would fill the database's disk.
MOST_UNPACKED, UNPACKED_ANYWAY = 100, 64 * 1024 * 1024
GZIP_BITS = 31


async def pieces(files: Files, upload: dict[str, Any], start: int) -> AsyncIterator[tuple[bytes, float]]:
    """Its bytes from `start` on, without compression, and which part of it is read by then. Raises NoListError."""
    read = _unpacked if upload["gzip"] else _plain
    async for piece, done in read(files, upload, start):
        yield piece, done / max(1, upload["bytes"])


async def _plain(files: Files, upload: dict[str, Any], start: int) -> AsyncIterator[tuple[bytes, int]]:
    done = start
    async for piece in files.reading(upload["path"], start, PIECE_BYTES):
        done += len(piece)
        yield piece, done


async def _unpacked(files: Files, upload: dict[str, Any], start: int) -> AsyncIterator[tuple[bytes, int]]:
    unpacking, whole = zlib.decompressobj(wbits=GZIP_BITS), True
    skip, done, unpacked = start, 0, 0
    async for packed in files.reading(upload["path"], 0, PIECE_BYTES):
        done += len(packed)
        left = packed
        while left:
            try:
                piece = await asyncio.to_thread(unpacking.decompress, left, PIECE_BYTES)
            except zlib.error as error:
                raise NoListError(f"The file is not whole, or no gzip: {error}.") from error
            unpacked += len(piece)
            if unpacked > UNPACKED_ANYWAY + MOST_UNPACKED * upload["bytes"]:
                raise NoListError(f"The file unpacks to more than {MOST_UNPACKED} times its size.")
            left, whole = unpacking.unconsumed_tail, unpacking.eof
            if whole:
                # Several of them, one after the other, are one.
                left = unpacking.unused_data.lstrip(b"\0")
                unpacking = zlib.decompressobj(wbits=GZIP_BITS)
            yield piece[skip:], done
            skip -= min(skip, len(piece))
    if not whole:
        raise NoListError("The file is not whole: its gzip breaks off.")
