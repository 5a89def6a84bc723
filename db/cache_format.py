"""What lies under which key in Redis, and the scripts that change it in one step."""

import re
import secrets
from dataclasses import dataclass
from typing import NamedTuple

from db.pipeline import Script

STATE = b"segmentql:state"
# While it is there nobody reads or stores lists.
CLOSED = b"segmentql:closed"
USER = "segmentql:user:"
# Where those listen who watch a user, a task, or all segments. What is said there is no more than that there is news.
USER_CHANNEL = "segmentql:user-changed:"
TASK_CHANNEL = "segmentql:task-changed:"
CATALOGUE_CHANNEL = "segmentql:catalogue-changed"
RUN_ID = re.compile(rb"run_id:(\w+)")
# First byte of a user's list; the generation follows.
LIST = b"V"
# Two processes may announce in either order: the version only rises. Without a state a new generation begins.
ANNOUNCE = Script("""
local state = redis.call('GET', KEYS[1])
if state then
  local generation, version = string.match(state, '^(.-):(%d+)$')
  if tonumber(version) < tonumber(ARGV[2]) then
    redis.call('SET', KEYS[1], generation .. ':' .. ARGV[2])
  end
else
  redis.call('SET', KEYS[1], ARGV[1] .. ':' .. ARGV[2])
end
""")


# Several may have it closed at a time: it is open again when the last of them opens it.
CLOSE = Script("""
redis.call('INCR', KEYS[1])
redis.call('PEXPIRE', KEYS[1], ARGV[1])
""")
OPEN = Script("""
if redis.call('DECR', KEYS[1]) <= 0 then
  redis.call('UNLINK', KEYS[1])
end
""")


@dataclass(frozen=True, slots=True)
class State:
    generation: bytes
    catalogue_version: int
    # What a list begins with that counts.
    counting: bytes


class Fetched(NamedTuple):
    # None: nobody has said yet which generation and version count.
    state: State | None
    # What lies under the users' keys, in the order asked: a list, which may be of another generation, or None.
    values: list[bytes | None]


def key(user_id: str) -> str:
    return USER + user_id


def parse_state(value: bytes) -> State:
    generation, _, version = value.partition(b":")
    return State(generation, int(version), LIST + generation)


def parse_run_id(info: bytes) -> bytes | None:
    """Which start of a server it is that says this of itself."""
    found = RUN_ID.search(info)
    return found[1] if found else None


def new_generation() -> bytes:
    return secrets.token_urlsafe(9).encode()
