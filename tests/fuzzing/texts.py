"""Texts and values that break software which takes them for something simpler."""

import json
import random
from typing import Any

# Unicode's worst, by what is bad about it.
TEXTS = {
    "nothing": "",
    "a space": " ",
    "spaces around": " a ",
    "NUL": "a\x00b",
    "a bell": "\x07",
    "tab": "a\tb",
    "line feed": "a\nb",
    "carriage return": "a\rb",
    "escape": "\x1b[31m",
    "delete": "\x7f",
    "next line": "a\x85b",
    "the last of C1": "\x9f",
    "no-break space": "a\xa0b",
    "soft hyphen": "a\xadb",
    "composed": "é",
    "decomposed": "e\u0301",
    "the sign of a unit": "\u212b",
    "the letter like it": "\xc5",
    "a ligature": "\ufb01",
    "Turkish": "İıI",
    "sharp": "ß\u1e9e",
    "a mark alone": "\u0301",
    "many marks": "a" + "\u0301\u0327" * 60,
    "right to left": "שלום-عربي",
    "an override": "a\u202egnp.exe",
    "isolates": "\u2066a\u2069\u200f",
    "of no width": "a\u200bb\u200cc\u200dd\u2060e",
    "byte order mark": "\ufeffa",
    "line separator": "a\u2028b",
    "paragraph separator": "a\u2029b",
    "no characters": "\ufffe\uffff",
    "none beyond": "\U0001fffe\U0010ffff",
    "private": "\ue000\U000f0000",
    "replacement": "\ufffd",
    "an emoji": "🦊",
    "a family": "👩\u200d👩\u200d👧\u200d👦",
    "a flag and tags": "🏴\U000e0067\U000e007f",
    "half of a pair": "\ud800",
    "the other half": "a\udc00b",
    "halves the wrong way round": "\udc00\ud800",
    "128 of four bytes": "🦊" * 128,
    "129 of four bytes": "🦊" * 129,
    "128 letters": "x" * 128,
    "129 letters": "x" * 129,
    "quotes": "'\"`\\",
    "a format": "%s{0}${x}%00",
    "SQL": "'; DROP TABLE segments; --",
    "a formula": "=1+1",
    "a sign": "+1",
    "another sign": "-1",
    "at": "@SUM(1)",
    "apostrophe": "'a",
    "apostrophes": "''=1",
    "the end of COPY": "\\.",
    "COPY's NULL": "\\N",
    "a comma": "a,b",
    "quoted": '"a","b"',
    "a glob": "*?[a-z]%_",
    "colons": "segmentql:user:1",
    "fullwidth": "\uff1d\uff11",
    "digits of elsewhere": "\u0661\u0662",
    "null": "null",
}
NUMBERS: tuple[Any, ...] = (0, -1, 1, 2**31 - 1, 2**31, 2**53, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**40)
FLOATS: tuple[Any, ...] = (0.5, -0.0, 1e16, 1e300, 5e-324, 33.333)
# What no Python object is written as.
RAW = (
    *("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e-999", "0x10", "01", "+1", "1.", ".5", "1e", "--1"),
    *("9" * 400, "0." + "1" * 400, "1E400", "-0", "tru", "nul", "undefined", "'a'", '"\\x"', '"\\ud800"'),
    *('"\\udc00\\ud800"', '"\\u0000"', '"\t"', '"', "{", "[", "{}}", "[1,]", '{"a":1,}', '{"a":1,"a":2}', "{1:2}"),
    *("/**/1", "1 2", '{"a" 1}', "\x00", "\ufeff1", "[" * 300 + "]" * 300, '{"a":' * 300 + "1" + "}" * 300),
)


class Raw(str):
    """What stands in JSON as it is."""

    __slots__ = ()


def text(random: random.Random) -> str:
    chance = random.random()
    if chance < 0.8:
        return random.choice(list(TEXTS.values()))
    if chance < 0.9:
        return "".join(random.choice(list(TEXTS.values())) for _ in range(3))
    return "".join(chr(random.choice((random.randrange(256), random.randrange(0x110000)))) for _ in range(5))


def value(random: random.Random, levels: int = 2) -> Any:
    """Of any kind."""
    chance = random.random() * (1 if levels else 0.85)
    if chance < 0.3:
        return text(random)
    if chance < 0.5:
        return random.choice(NUMBERS)
    if chance < 0.58:
        return random.choice(FLOATS)
    if chance < 0.7:
        return random.choice((None, True, False, [], {}, [None], [[]], {"": 1}))
    if chance < 0.85:
        return Raw(random.choice(RAW))
    if chance < 0.93:
        return [value(random, levels - 1) for _ in range(random.choice((1, 2, 3, 101)))]
    return {text(random): value(random, levels - 1) for _ in range(random.choice((1, 2, 30)))}


def spoiled(good: Any, random: random.Random) -> Any:
    """The same with something else somewhere in it."""
    if isinstance(good, dict) and good and random.random() < 0.85:
        changed, key = dict(good), random.choice(list(good))
        chance = random.random()
        if chance < 0.1:
            del changed[key]
        elif chance < 0.2:
            changed[text(random)] = value(random)
        else:
            changed[key] = spoiled(good[key], random)
        return changed
    if isinstance(good, list) and good and random.random() < 0.7:
        place = random.randrange(len(good))
        return [*good[:place], spoiled(good[place], random), *good[place + random.randrange(2) :]]
    if random.random() < 0.15:
        return random.choice(([good], [[good]], {"value": good}, str(good)))
    return value(random)


def dumped(given: Any, random: random.Random) -> bytes:
    """As JSON, more or less: what is raw is written as it is, and halves of surrogate pairs now and then as bytes."""
    escaped = random.random() < 0.5
    return _written(given, escaped=escaped).encode("utf-8", "surrogatepass")


def _written(given: Any, *, escaped: bool) -> str:
    if isinstance(given, Raw):
        return str(given)
    if isinstance(given, dict):
        pairs = (
            f"{json.dumps(key, ensure_ascii=escaped)}:{_written(each, escaped=escaped)}" for key, each in given.items()
        )
        return f"{{{','.join(pairs)}}}"
    if isinstance(given, list):
        return f"[{','.join(_written(each, escaped=escaped) for each in given)}]"
    return json.dumps(given, ensure_ascii=escaped)
