"""One statement as PostgreSQL's protocol has it: what is sent each time, and the rows that come."""

import struct
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import orjson

from db.clock import EPOCH
from db.primary import Connection

# As it comes: each column with its length before it.
Row = bytes

INT, PAIR, BIGINT_VALUE, ARRAY = struct.Struct("!i"), struct.Struct("!ii"), struct.Struct("!iq"), struct.Struct("!5i")
_int = INT.pack
# A length that says there is no value.
NULL = _int(-1)
# Execute, until there are no more rows; and Sync, which commits.
EXECUTE = b"E\0\0\0\x09\0\0\0\0\0S\0\0\0\x04"
# For all of them, the binary format.
BINARY = b"\0\1\0\1"


class Type(NamedTuple):
    """Of a parameter."""

    oid: int
    # With the length before it.
    encode: Callable[[Any], bytes]


def _bytes(value: bytes) -> bytes:
    return _int(len(value)) + value


def _text(value: str) -> bytes:
    written = value.encode()
    return _int(len(written)) + written


def _texts(values: Sequence[str]) -> bytes:
    items = b"".join([_text(value) for value in values])
    # One dimension without NULL, that many from the first on.
    return ARRAY.pack(20 + len(items), 1, 0, TEXT.oid, len(values)) + _int(1) + items


def _instant(value: datetime) -> bytes:
    return BIGINT_VALUE.pack(8, (value - EPOCH) // timedelta(microseconds=1))


TEXT, BYTES = Type(25, _text), Type(17, _bytes)
INTEGER, BIGINT = Type(23, lambda value: PAIR.pack(4, value)), Type(20, lambda value: BIGINT_VALUE.pack(8, value))
TEXTS, INSTANT = Type(1009, _texts), Type(1184, _instant)


def columns(row: Row) -> list[bytes | None]:
    """Of a row, in the binary format of each one's type."""
    found: list[bytes | None] = []
    at = 0
    while at < len(row):
        (size,) = INT.unpack_from(row, at)
        at += INT.size
        found.append(None if size < 0 else row[at : at + size])
        at += max(0, size)
    return found


def integer(column: bytes) -> int:
    """What a column of any of the integer types has."""
    return int.from_bytes(column, "big", signed=True)


def json(column: bytes) -> Any:
    """What a column of type jsonb has: its first byte is the format's version."""
    return orjson.loads(column[1:])


class Statement:
    """Its text, and the types of its parameters. On every connection it is prepared by the same name."""

    _name = "statement"

    def __init__(self, text: str, *takes: Type) -> None:
        self.text = text
        # The types' oids.
        self._takes = [each.oid for each in takes]
        self._encoders = [each.encode for each in takes]
        self._beginning = b"\0%b\0%b%b" % (self._name.encode(), BINARY, struct.pack("!h", len(takes)))

    async def prepare(self, connection: Connection) -> None:
        """On a connection of the driver's. Raises TypeError when it takes other types than those that are sent."""
        prepared = await connection.prepare(self.text, name=self._name)
        takes = [each.oid for each in prepared.get_parameters()]
        if takes != self._takes:
            raise TypeError(f"it takes values of the types {takes}, not {self._takes}")
        # The driver leaves open the transaction in which it has prepared: with its locks, its clock and its time limit.
        await connection.execute("SELECT 1")

    def bound(self, values: Sequence[object]) -> bytes:
        """The messages that execute it with these values, and commit it. Raises what is wrong with a value."""
        parts = [NULL if value is None else encode(value) for encode, value in zip(self._encoders, values, strict=True)]
        body = b"".join((self._beginning, *parts, BINARY))
        return b"B" + _int(4 + len(body)) + body + EXECUTE
