"""Files for imports: in good order, where Python's own parser says what is in them, and broken in all ways."""

import csv
import gzip
import io
import random
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fuzzing.texts import TEXTS

# As the guide for batch clients has it.
LONGEST_ID, LONGEST_LINE = 128, 4_096
DEFUSED = ("'=", "'+", "'-", "'@", "''")
HEADERS: tuple[tuple[str, ...], ...] = (
    (),
    ("user_id",),
    ("user_id", "expires_at"),
    ("user_id", "ttl_days"),
    ("user_id", "expires_at", "ttl_days"),
    ("USER_ID", "ttl_days", "segment"),
    ("user_id", "added_at", "expires_at"),
)
UNTIL = "2999-01-01T00:00:00Z"
ENDS = ("\n", "\r\n")


@dataclass(frozen=True)
class File:
    kind: str
    content: bytes
    # What is in it, without compression; None where nobody can say.
    text: bytes | None


@dataclass(frozen=True)
class Row:
    """What a row asks for: until when, `days` where that is counted from an instant unknown; None: it asks nothing."""

    user_id: str | None
    until: str | None = None


def in_order(random: random.Random) -> File:
    """A file that Python's module has written."""
    header = random.choice(HEADERS)
    written = io.StringIO(newline="")
    writer = csv.writer(written, random.choice(("excel", "unix")), lineterminator=random.choice(ENDS))
    if header:
        writer.writerow(header)
    for _ in range(random.choice((0, 1, 5, 40, 300))):
        row = [_id(random), *(_cell(column, random) for column in header[1:])]
        if random.random() < 0.03:
            row = row[:-1] if random.random() < 0.5 else [*row, "more"]
        writer.writerow(row)
    text = written.getvalue()
    if random.random() < 0.3:
        text = text.rstrip("\r\n")
    content = text.encode()
    if random.random() < 0.2:
        content = b"\xef\xbb\xbf" + content
    if random.random() < 0.3:
        packed = gzip.compress(content)
        if random.random() < 0.5:
            half = len(content) // 2
            packed = gzip.compress(content[:half]) + gzip.compress(content[half:]) + b"\0" * random.choice((0, 512))
        return File("in order, packed", packed, content)
    return File("in order", content, content)


def _id(random: random.Random) -> str:
    if random.random() < 0.7:
        return f"user-{random.randrange(400)}"
    id_ = random.choice([text for text in TEXTS.values() if not {"\n", "\r"} & set(text)])
    return "".join(letter for letter in id_ if not 0xD800 <= ord(letter) < 0xE000)


def _cell(column: str, random: random.Random) -> str:
    if column == "ttl_days":
        return random.choice(("", "", "", "7", "36500", "0", "x", "-1", "1e3", "36501", "7 "))
    if column == "expires_at":
        return random.choice(("", "", UNTIL, UNTIL, "2020-01-01T00:00:00Z", "tomorrow", "2999-01-01", "9" * 400))
    return random.choice(("", "anything"))


def rows(text: bytes) -> list[Row]:
    """What is in a file in order, by Python's own parser and the rules that callers are told."""
    read = list(csv.reader(io.StringIO(text.decode("utf-8-sig"), newline="")))
    columns: Sequence[str] = ("user_id",)
    if read and read[0] and read[0][0].lower() == "user_id":
        columns = [name.lower() for name in read.pop(0)]
    lengths = [len(line.removesuffix(b"\r")) for line in text.split(b"\n")][-len(read) - (text[-1:] == b"\n") :]
    return [_row(row, columns, length) for row, length in zip(read, lengths, strict=False)]


def _row(row: list[str], columns: Sequence[str], length: int) -> Row:
    if len(row) != len(columns) or length > LONGEST_LINE:
        return Row(None)
    id_ = row[0][1:] if row[0].startswith(DEFUSED) else row[0]
    if not 1 <= len(id_) <= LONGEST_ID or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in id_):
        return Row(None)
    told = dict(zip(columns, row, strict=True))
    until, days = told.get("expires_at", ""), told.get("ttl_days", "")
    if (until and days) or until not in ("", UNTIL) or days not in ("", "7", "36500"):
        return Row(None)
    return Row(id_, "days" if days else until or None)


def broken(random: random.Random) -> File:
    """A file with something wrong about it."""
    good = in_order(random)
    text = good.text or b""
    return random.choice(BREAKING)(text, random)


def _bytes(text: bytes, random: random.Random) -> File:
    changed = bytearray(text)
    for _ in range(random.choice((1, 2, 5, 30))):
        place = random.randrange(len(changed) + 1)
        changed[place : place + random.randrange(4)] = random.choice(
            (
                *(b"\x00", b'"', b'""', b",", b"\r", b"\n", b"\r\n", b"\n\r", b"\xc2\x85", b"\x85", b"\xe2\x80\xa8"),
                *(
                    b"\xff",
                    b"\xed\xa0\x80",
                    b"\xc0\x80",
                    b"\xef\xbb\xbf",
                    b"\\.",
                    b"\\N",
                    b"\t",
                    b"\x1a",
                    b"\x0c",
                    b"'",
                ),
                *(b"=cmd()", b"x" * 5_000, b"\x1f\x8b", b"user_id\n", b"\\\n", b"\\", b"\xf0\x9f\xa6\x8a" * 129),
            )
        )
    return File("bytes", bytes(changed), None)


def _headed(text: bytes, random: random.Random) -> File:
    header = random.choice(
        (
            *(b"user_id,colour", b"user_id,user_id", b"id", b"user_id;expires_at", b"user_id\texpires_at", b"user_id,"),
            *(b'"user_id","expires_at"', b'"user_id', b" user_id ", b"user_id,expires_at,expires_at", b"\xffuser_id"),
            *(
                b"\xef\xbb\xbf\xef\xbb\xbfuser_id",
                b"user_id" + b",segment" * 9,
                b"user_id,\x00",
                b"user_id" + b"," * 9_000,
            ),
        )
    )
    return File("header", header + b"\n" + text, None)


def _noise(text: bytes, random: random.Random) -> File:
    return File("noise", bytes(random.randrange(256) for _ in range(random.choice((0, 1, 2, 300, 20_000)))), None)


def _encoded(text: bytes, random: random.Random) -> File:
    return File("encoding", text.decode().encode(random.choice(("utf-16", "utf-16-le", "utf-32", "utf-7"))), None)


def _long(text: bytes, random: random.Random) -> File:
    piece = random.choice((b"x", b'"', b",", b"\r", b"\x00", b"\xc3\xa9", b'"",'))
    line = piece * random.choice((5_000, 70_000, 1_000_000))
    return File("long lines", random.choice((line, text + line, line + b"\n" + text, b'"' + text + line)), None)


def _many(text: bytes, random: random.Random) -> File:
    line = random.choice((b"\n", b"\r\n", b"a\n", b'"\n', b",\n", b"\r"))
    return File("many lines", line * random.choice((1_000, 60_000)), None)


def _packed(text: bytes, random: random.Random) -> File:
    packed = gzip.compress(text * random.choice((1, 30)))
    place = random.randrange(len(packed))
    return random.choice(
        (
            File("gzip cut off", packed[:place], None),
            File("gzip and more", packed + b"more", None),
            File("gzip twice", gzip.compress(packed), None),
            File("gzip spoiled", packed[:place] + b"\xff\x00" + packed[place + 2 :], None),
            File("gzip and half", packed + packed[: len(packed) // 2], None),
            File("gzip alone", b"\x1f\x8b", None),
            File("gzip of nothing", gzip.compress(b"") * random.choice((1, 2_000)), None),
            File("gzip of little many times", gzip.compress(b"a\n") * 2_000, None),
        )
    )


def bomb(random: random.Random) -> File:
    """What unpacks to a thousand times as much."""
    piece = random.choice((b"\0" * 1_000_000, (b"x" * 9_999 + b"\n") * 100))
    return File("gzip bomb", gzip.compress(piece * 120), None)


BREAKING: tuple[Callable[[bytes, random.Random], File], ...] = (
    *(_bytes, _bytes, _bytes, _headed, _noise, _encoded, _long, _many, _packed, _packed),
)


def file(random: random.Random, *, bombs: bool) -> File:
    if bombs and random.random() < 0.01:
        return bomb(random)
    return in_order(random) if random.random() < 0.5 else broken(random)
