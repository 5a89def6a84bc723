"""Reading the lines of an import's file: what each asks for, or why it cannot be had.

One line is one row: a quoted field cannot contain a line break. So a stray quotation mark costs its own line, and not
all those up to the next.
"""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from db import user_ids
from db.clock import TTL_DAYS, parse_instant
from db.staging import Reject
from db.user_ids import is_printable

# No good line is longer: an id takes four bytes a character at most, and may be quoted.
LONGEST_LINE = 4_096
SHOWN = 200
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
DAYS = re.compile("[0-9]{1,5}")
QUOTED = re.compile(r'(?:"(?:[^"]|"")*"|[^",]*)(?:,(?:"(?:[^"]|"")*"|[^",]*))*')
DEFUSED = ("'=", "'+", "'-", "'@", "''")
HEADER = "user_id"
EXPIRES_AT, TTL = "expires_at", "ttl_days"
# What our own exports have besides.
PASSED_OVER = ("added_at", "segment")


class NoListError(Exception):
    """Why the whole file cannot be imported, in a sentence."""


class _Refused(Exception):
    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


@dataclass(slots=True)
class Read:
    """What came of some lines."""

    # Rows, in COPY's text format.
    copied: list[str] = field(default_factory=list)
    rejected: list[Reject] = field(default_factory=list)

    def extend(self, other: "Read") -> None:
        self.copied += other.copied
        self.rejected += other.rejected


@dataclass(slots=True)
class Lines:
    """A file that is being read; `taken`, `number` and `columns` are where to go on in another process."""

    # From when on days count, and what is past.
    begin: datetime
    # Of rows that tell none.
    expires_at: datetime | None
    # Whether expiries matter, and what is told of them.
    expiring: bool = True
    # How many bytes were read up to the end of a line, and how many lines these are.
    taken: int = 0
    number: int = 0
    # Without a header a line is a user and nothing else.
    columns: Sequence[str] = (HEADER,)
    header: bool = False
    # Behind the last line's end, and how much of it is not kept because it is too long.
    _rest: bytes = b""
    _dropped: int = 0

    def read(self, chunk: bytes, *, last: bool = False) -> Read:
        """What the next bytes say; `last` when they are the file's end."""
        found = Read()
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            self.taken += self._dropped + len(line) + 1
            self._dropped = 0
            self._line(line, found)
        if last and self._rest:
            self.taken += self._dropped + len(self._rest)
            self._line(self._rest, found)
            self._rest = b""
        elif len(self._rest) > LONGEST_LINE:
            # It is told of when it ends. What is kept of it is enough to see that it is too long.
            self._dropped += len(self._rest) - LONGEST_LINE - 1
            self._rest = self._rest[: LONGEST_LINE + 1]
        return found

    def _line(self, line: bytes, found: Read) -> None:
        self.number += 1
        line = line.removesuffix(b"\r")
        if self.number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
            if self._header(line):
                return
        try:
            user_id, expires_at = self._row(line)
        except _Refused as refused:
            found.rejected.append(Reject(self.number, refused.code, refused.reason, _shown(line)))
            return
        until = "infinity" if expires_at is None else expires_at.isoformat()
        if "\\" in user_id:
            user_id = user_id.replace("\\", "\\\\")
        found.copied.append(f"{user_id}\t{self.number}\t{until}\n")

    def _header(self, line: bytes) -> bool:
        names = [name.strip().strip('"') for name in line.decode("utf-8", "replace").split(",")]
        if names[0].lower() != HEADER:
            return False
        self.header, self.columns = True, tuple(name.lower() for name in names)
        for place, name in enumerate(self.columns[1:], 1):
            if name not in (EXPIRES_AT, TTL, *PASSED_OVER):
                raise NoListError(f"The header has a column {names[place][:SHOWN]!r}, which nobody knows.")
        if len(set(self.columns)) < len(self.columns):
            raise NoListError("The header has a column twice.")
        return True

    def _row(self, line: bytes) -> tuple[str, datetime | None]:
        fields = _fields(line)
        if len(fields) != len(self.columns):
            raise _Refused("COLUMN_COUNT", f"The line has {len(fields)} columns, not {len(self.columns)}.")
        user_id = _user_id(fields[0])
        if len(fields) == 1 or not self.expiring:
            return user_id, self.expires_at
        return user_id, self._expiry(dict(zip(self.columns, fields, strict=True)))

    def _expiry(self, row: dict[str, str]) -> datetime | None:
        until, days = row.get(EXPIRES_AT, ""), row.get(TTL, "")
        if until and days:
            raise _Refused("BAD_TTL_DAYS", "The line has both expires_at and ttl_days.")
        if days:
            if not DAYS.fullmatch(days) or not 1 <= int(days) <= TTL_DAYS:
                raise _Refused("BAD_TTL_DAYS", f"ttl_days is a whole number from 1 to {TTL_DAYS}.")
            return self.begin + timedelta(days=int(days))
        if not until:
            return self.expires_at
        try:
            instant = parse_instant(until)
        except OverflowError:
            instant = None
        if instant is None:
            raise _Refused("BAD_EXPIRES_AT", "expires_at is an instant like 2027-02-01T09:30:00Z, with an offset.")
        if instant <= self.begin:
            raise _Refused("IN_THE_PAST", "expires_at is in the past.")
        return instant


def _fields(line: bytes) -> list[str]:
    if not line:
        raise _Refused("EMPTY", "The line is empty.")
    if len(line) > LONGEST_LINE:
        raise _Refused("TOO_LONG", f"A line has at most {LONGEST_LINE} bytes.")
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise _Refused("NOT_UTF8", f"Byte {error.start + 1} of the line is not UTF-8.") from error
    if '"' not in text:
        return text.split(",")
    if not QUOTED.fullmatch(text):
        raise _Refused("QUOTING", "A quotation mark is not closed, or stands within a field without quotes.")
    try:
        return next(csv.reader([text]))
    except csv.Error as error:
        raise _Refused("CONTROL_CHARACTER", "A field without quotes has a control character.") from error


def _user_id(field: str) -> str:
    user_id = field[1:] if field.startswith(DEFUSED) else field
    if not user_id:
        raise _Refused("EMPTY", "The user id is empty.")
    if len(user_id) > user_ids.LENGTH:
        raise _Refused("TOO_LONG", f"A user id has at most {user_ids.LENGTH} characters.")
    if not is_printable(user_id):
        raise _Refused("CONTROL_CHARACTER", "A user id has no control characters.")
    return user_id


def _shown(line: bytes) -> str:
    """So much of the line as fits into a file of text."""
    return user_ids.UNPRINTABLE.sub("�", line[: 4 * SHOWN].decode("utf-8", "replace"))[:SHOWN]
