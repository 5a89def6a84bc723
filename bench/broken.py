"""Files for imports in which some lines are broken, each of them in a way that is known."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from bench import seeds

UNTIL = datetime(2090, 1, 1, tzinfo=UTC)
# What the driver means by `infinity`.
NEVER = datetime.max.replace(tzinfo=UTC)
# Of so many lines one is broken, and of so many good ones one ends, is quoted without need, or has another line's end.
BROKEN, ENDING, QUOTED, CRLF = 100, 5, 11, 7
KINDS = (
    "EMPTY",
    "TOO_LONG",
    "NUL",
    "NOT_UTF8",
    "DUPLICATE",
    "BAD_EXPIRES_AT",
    "IN_THE_PAST",
    "COLUMN_COUNT",
    "QUOTING",
    "STRAY_CR",
)
CODES = {kind: kind for kind in KINDS} | {"NUL": "CONTROL_CHARACTER", "STRAY_CR": "CONTROL_CHARACTER"}
BAD_DATES = ("tomorrow", "2030-02-30T00:00:00Z", "2030-01-01", "2030-01-01T00:00:00", "0000-00-00T00:00:00Z")
PAST_DATES = ("2020-01-01T00:00:00Z", "1970-01-01T00:00:00+14:00", "0001-01-01T00:00:00Z")
Member = tuple[str, datetime]


@dataclass(slots=True)
class Listed:
    """What a file says."""

    path: Path
    rows: int
    # In the order of the file.
    good: list[Member] = field(default_factory=list)
    # Lines and codes.
    rejects: list[tuple[int, str]] = field(default_factory=list)

    @property
    def duplicates(self) -> int:
        return sum(code == "DUPLICATE" for _, code in self.rejects)


def write(path: Path, rows: int, chance: random.Random) -> Listed:
    """A file of so many lines behind its header."""
    listed = Listed(path, rows)
    order = chance.sample(range(rows), rows)
    # The first are good, so that there is something to repeat.
    places = chance.sample(range(min(BROKEN, rows // 2), rows), rows // BROKEN)
    broken = {place: KINDS[number % len(KINDS)] for number, place in enumerate(places)}
    with path.open("wb") as file:
        file.write(b"user_id,expires_at\n")
        for place, number in enumerate(order):
            if (kind := broken.get(place)) is None:
                file.write(_good(listed, number))
            else:
                # The header is line 1.
                listed.rejects.append((place + 2, CODES[kind]))
                file.write(_broken(kind, name(number), listed.good, chance) + b"\n")
    return listed


def plain(path: Path, users: Sequence[str]) -> Path:
    """A file of nothing but users."""
    path.write_text("".join(f"{user}\n" for user in users))
    return path


def name(number: int) -> str:
    """Some of them are such that a spreadsheet might run, or a reader of CSV or of COPY stumble over."""
    odd = {0: "=1+", 1: "-", 2: "'", 3: 'a,"b" ', 4: "\\.", 5: "жён ", 6: '"', 7: "\\N", 8: " ", 9: "\N{GRINNING FACE}"}
    return odd.get(number % 97, "") + seeds.user_id(number)


def _good(listed: Listed, number: int) -> bytes:
    user, ends = name(number), number % ENDING == 0
    listed.good.append((user, UNTIL if ends else NEVER))
    until = f"{UNTIL:%Y-%m-%dT%H:%M:%SZ}" if ends else ""
    line_end = "\r\n" if number % CRLF == 0 else "\n"
    return f"{_field(user, quoted=number % QUOTED == 0)},{until}{line_end}".encode()


def _field(user: str, *, quoted: bool = False) -> str:
    # As our own exports write it.
    defused = f"'{user}" if user.startswith(("=", "+", "-", "@", "'")) else user
    return '"' + defused.replace('"', '""') + '"' if quoted or set(defused) & set(',"') else defused


def _broken(kind: str, user: str, good: Sequence[Member], chance: random.Random) -> bytes:
    known = seeds.user_id(chance.randrange(2**31))
    match kind:
        case "EMPTY":
            return chance.choice((b"", b",", b'"",', b"\r", b",2090-01-01T00:00:00Z"))
        case "TOO_LONG":
            return chance.choice((f"{known:x>129},", f"{known},{'x' * 5_000}", "ж" * 129 + ",")).encode()
        case "NUL":
            return f"{known[:2]}\0{known[2:]},".encode()
        case "NOT_UTF8":
            return chance.choice((b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80")) + known.encode() + b","
        case "DUPLICATE":
            return (_field(chance.choice(good)[0]) + chance.choice((",", ",2095-01-01T00:00:00Z"))).encode()
        case "BAD_EXPIRES_AT":
            return f"{_field(user)},{chance.choice(BAD_DATES)}".encode()
        case "IN_THE_PAST":
            return f"{_field(user)},{chance.choice(PAST_DATES)}".encode()
        case "COLUMN_COUNT":
            return (_field(user) + chance.choice(("", ",,", ",2090-01-01T00:00:00Z,x"))).encode()
        case "QUOTING":
            return chance.choice((f'"{known},', f'{known[:2]}"{known[2:]},', f'"{known}"x,', f'"{known}",""x')).encode()
    return f"{known[:2]}\r{known[2:]},".encode()


def copied(good: Sequence[Member], extra: str) -> Iterator[str]:
    """The same members in the text format of COPY, each with further columns between the user and the expiry."""
    for user, until in good:
        ends = "infinity" if until == NEVER else until.isoformat()
        escaped = user.replace("\\", "\\\\")
        yield f"{escaped}\t{extra}\t{ends}\n"
