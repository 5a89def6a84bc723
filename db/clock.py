"""What time the database thinks it is: that decides about an expiry, whatever this machine's clock says."""

import re
import time
from datetime import UTC, datetime, timedelta

# Instants travel as PostgreSQL keeps them: whole microseconds since this one.
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
# Ten minutes are as many microseconds as Python calculates with fast; and how they, a second of them and a thousandth
# are written.
BLOCK = 600_000_000
SECONDS = [f"{second // 60}:{second % 60:02}." for second in range(600)]
MILLIS = [f"{milli:03}" for milli in range(1_000)]
MICROS = [f"{micro:03}Z" for micro in range(1_000)]
# A year has as many, in some megabytes.
MOST_BLOCKS = 53_000
# PostgreSQL's `infinity`.
NEVER = 2**63 - 1
# And its `-infinity`.
ALWAYS = -(2**63)
# RFC 3339 with an offset: nothing is guessed, and no digit that was sent is dropped.
INSTANT = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d{1,6})?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)", re.ASCII)
# The longest lifetime, a century. More is a mistake in the unit, and would soon leave the calendar.
TTL_DAYS = 36_500
_blocks: dict[int, str] = {}
# The database's driver means `infinity` by it.
TAKEN = datetime.max.replace(tzinfo=UTC)
# No crystal of a server is worse; an estimate loses this much certainty with time.
DRIFT = 100e-6
# A machine that was suspended has to notice: Linux has a clock that went on meanwhile.
TICKS = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def ticks() -> float:
    """Seconds since some moment, which nobody can set."""
    return time.clock_gettime(TICKS)


class Clock:
    """The database's clock, estimated from `ticks`.

    An observation tells the offset between the two only up to its round trip. Of all instants that are possible the
    latest is taken: a membership may be seen to expire a round trip early, and is never served after its end.
    """

    def __init__(self) -> None:
        self._low = 0
        self._high = 0
        self._observed = float("-inf")

    def observe(self, sent: float, received: float, instant: int) -> None:
        """Take in that the database's clock showed `instant` between two moments of `ticks`."""
        low, high = instant - int(received * 1e6), instant - int(sent * 1e6) + int((received - sent) * DRIFT * 1e6) + 1
        if self._observed > float("-inf"):
            slack = int((received - self._observed) * DRIFT * 1e6) + 1
            wide_low, wide_high = self._low - slack, self._high + slack
            # When the two exclude each other the database's clock was set: the new observation stands alone.
            if low <= wide_high and wide_low <= high:
                low, high = max(low, wide_low), min(high, wide_high)
        self._low, self._high, self._observed = low, high, received

    def now(self) -> int:
        """Microseconds since EPOCH."""
        now = ticks()
        return int((now + (now - self._observed) * DRIFT) * 1e6) + self._high


def as_datetime(instant: int) -> datetime | None:
    """The instant as the contract shows it; None for one that never comes."""
    return None if instant == NEVER else EPOCH + timedelta(microseconds=instant)


def as_text(instant: int) -> str:
    """The same as a DateTime in an answer, several times as fast: it is most of what an answer is made of."""
    block, rest = instant // BLOCK, instant % BLOCK
    beginning = _blocks.get(block) or _block(block)
    return f"{beginning}{SECONDS[rest // 1_000_000]}{MILLIS[rest // 1_000 % 1_000]}{MICROS[rest % 1_000]}"


def _block(block: int) -> str:
    if len(_blocks) >= MOST_BLOCKS:
        _blocks.clear()
    found = _blocks[block] = (EPOCH + timedelta(microseconds=block * BLOCK)).isoformat()[:15]
    return found


def parse_instant(text: str) -> datetime | None:
    """The instant that is written so; None when it is no RFC 3339 with an offset, and OverflowError when there is none
    of that name.
    """
    if not INSTANT.fullmatch(text):
        return None
    try:
        instant = datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        instant = TAKEN
    if instant == TAKEN:
        raise OverflowError(text)
    return instant
