"""What our tokens look like.

`segmentql_` lets those who look for leaked secrets recognise one. Then come its id, by which it is found, the secret,
which is kept nowhere, and a checksum: what was mistyped or made up is known without looking anything up.
"""

import hashlib
import re
import secrets
import zlib
from dataclasses import dataclass, field

PREFIX = "segmentql_"
DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ID_DIGITS = 12
# 256 bits, so that nobody can guess it, and one plain hash of it is enough.
SECRET_DIGITS = 43
CHECK_DIGITS = 6
TOKEN = re.compile(
    rf"{PREFIX}([0-9A-Za-z]{{{ID_DIGITS}}})_([0-9A-Za-z]{{{SECRET_DIGITS}}})([0-9A-Za-z]{{{CHECK_DIGITS}}})"
)


@dataclass(frozen=True, slots=True)
class Token:
    """A token as its caller has it; printed in passing, it shows no more than its id."""

    id: str
    secret: str = field(repr=False)

    @property
    def text(self) -> str:
        """All of it, for nobody but its owner."""
        unchecked = f"{PREFIX}{self.id}_{self.secret}"
        return unchecked + _check(unchecked)

    @property
    def hash(self) -> bytes:
        """What is kept of the secret."""
        return hashlib.sha256(self.secret.encode()).digest()


def make() -> Token:
    return Token(_drawn(ID_DIGITS), _drawn(SECRET_DIGITS))


def parse(text: str) -> Token | None:
    """The token that is written so, whether there is such a one or not; None for what never was one."""
    found = TOKEN.fullmatch(text)
    if found is None or _check(text[:-CHECK_DIGITS]) != found[3]:
        return None
    return Token(found[1], found[2])


def _drawn(digits: int) -> str:
    return "".join(secrets.choice(DIGITS) for _ in range(digits))


def _check(text: str) -> str:
    number, digits = zlib.crc32(text.encode()), ""
    for _ in range(CHECK_DIGITS):
        number, digit = divmod(number, len(DIGITS))
        digits = DIGITS[digit] + digits
    return digits
