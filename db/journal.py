"""The journal in Redis of whose lists were removed in the last seconds: it keeps a reader from storing an old one.

What a reader has read while somebody else changed it must not be stored once that is acknowledged. So whoever removes a
list writes it into the journal first, and a reader knows an entry of that before it reads: its list is stored only if
the journal still has that entry, and none of the user behind it. Of a journal that vanishes nothing is stored.
"""

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Any

from db.cache_format import LIST, USER, key
from db.pipeline import Script

# A stream; an entry has users' keys, or '' which stands for everybody.
JOURNAL = b"segmentql:journal"
# How long it goes on, whoever writes into it, and with it how old a list can be that is stored. A statement may take
# 2.5 s (db/connections.py); but what takes long may find that its journal has ended meanwhile, and is not stored.
JOURNAL_MS = 3_000
# Its entries, more or less; and how many are looked at before a list is stored: if there are more, it is not.
ENTRIES, LOOKED_AT = 10_000, 500
# Users of an entry. Of very many it says that they are everybody: looking at them would take Redis too long.
NAMED = 10
# How long an entry is good for readings that begin. Of an older one too many would seem to have been changed since.
FRESH_SECONDS = 0.1
# A process that Redis is cut off from cannot invalidate. With the journal's time this stays below the promised minute;
# spread, so that lists stored together do not all have to be read again together.
TTL_MS, SPREAD_MS = 45_000, 10_000
# The journal's last entry. Where there is none it begins with one that says nothing, under an id that the caller has
# drawn: the next ones follow that, whatever the clock says, and no other journal has the same.
LAST = """
local function last()
  local entries = redis.pcall('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
  if entries[1] then
    return entries[1][1]
  end
  redis.call('UNLINK', KEYS[1])
  redis.call('XADD', KEYS[1], ARGV[2], 'user', '-')
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
  return ARGV[2]
end
"""
BEGIN = Script(LAST + "return last()")
# A list is stored where the journal still has the entry that it was read after, and no later one of its user. The last
# two arguments are that entry, and how many are looked at.
FILL = Script(
    LAST
    + """
local known, most = ARGV[#ARGV - 1], tonumber(ARGV[#ARGV])
local entries, changed, stored = redis.pcall('XRANGE', KEYS[1], known, '+', 'COUNT', most), {}, 0
if not entries[1] or entries[1][1] ~= known then
  return {0, last()}
end
for i = 2, #entries do
  local users = entries[i][2]
  for j = 2, #users, 2 do
    changed[users[j]] = true
  end
end
if not changed[''] and #entries < most then
  for i = 2, #KEYS do
    if not changed[KEYS[i]] then
      redis.call('SET', KEYS[i], ARGV[2 * i - 1], 'PX', ARGV[2 * i])
      stored = stored + 1
    end
  end
end
return {stored, last()}
"""
)
# Many keys by one argument: several would take us ten times as long to send. No id has a line end. Whoever watches one
# of these users is told, if Redis lets us: the lists have to go even where we may not say anything on its channels. The
# journal comes last: Redis does not refuse memory to who has begun to write.
REMOVE = Script("""
local keys = {}
for user in string.gmatch(ARGV[1], '[^\\n]+') do
  keys[#keys + 1] = KEYS[2] .. user
  if ARGV[2] ~= '' then
    redis.pcall('PUBLISH', ARGV[2] .. user, '')
  end
end
redis.call('UNLINK', unpack(keys))
local noted = redis.pcall('XADD', KEYS[1], 'NOMKSTREAM', 'MAXLEN', '~', ARGV[3], '*', 'user', '')
if type(noted) == 'table' and noted.err then
  redis.call('UNLINK', KEYS[1])
end
""")
# Ids that no clock reaches, of 61 bits drawn by chance.
NAMES = 1 << 61


class Journal:
    """What one process knows of it: an entry that was there."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._entry, self._noted = b"", float("-inf")

    @property
    def entry(self) -> bytes | None:
        """The last one that was seen; None when that was a while ago."""
        return self._entry if self._noted + FRESH_SECONDS > self._loop.time() else None

    def note(self, entry: bytes) -> None:
        self._entry, self._noted = entry, self._loop.time()


def beginning() -> tuple[Any, ...]:
    """The command that has the journal begin if there is none; it returns the last entry."""
    return BEGIN, [JOURNAL], [JOURNAL_MS, _name()]


def adding(keys: Sequence[str]) -> tuple[Any, ...]:
    """The command that notes whose lists are removed next, if there is a journal; it takes NAMED keys at the most."""
    users = [part for each in keys for part in ("user", each)]
    return "XADD", JOURNAL, "NOMKSTREAM", "MAXLEN", "~", ENTRIES, "*", *users


def removing(user_ids: Sequence[str], channel: str) -> tuple[Any, ...]:
    """The command that removes the lists of many, notes that, and tells who watches them, unless the channel is ''."""
    return REMOVE, [JOURNAL, USER], ["\n".join(user_ids), channel, ENTRIES]


def filling(entry: bytes, generation: bytes, lists: Mapping[str, bytes]) -> tuple[Any, ...]:
    """The command that stores users' lists; it returns how many it has stored, and the journal's last entry."""
    beginning = LIST + generation
    args: list[Any] = [JOURNAL_MS, _name()]
    for packed in lists.values():
        args += beginning + packed, b"%d" % (TTL_MS + random.random() * SPREAD_MS)  # noqa: S311  # keeps no secret
    args += entry, LOOKED_AT
    return FILL, [JOURNAL, *map(key, lists)], args


def _name() -> bytes:
    return b"%d-1" % (NAMES | random.getrandbits(61))
