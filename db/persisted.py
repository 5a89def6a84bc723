"""Documents that callers name by their hashes, in Redis, so that what one process was shown the others know.

Redis may lose any of them at any moment, and may be away: then a caller is asked for the document once more.
"""

import asyncio

from db.cache import Cache
from db.pipeline import Part, Script, once

# All in three keys: the texts by their hashes, when each was used last, and how many bytes the texts are together.
KEYS: list[Part] = ["segmentql:documents", "segmentql:documents:used", "segmentql:documents:bytes"]
# Together. An application has some hundreds of documents, of a kilobyte or two.
MOST, MOST_BYTES = 5_000, 8_388_608
# After which a document that nobody has used is forgotten.
SECONDS = 86_400
FIND = Script("return redis.call('HGET', KEYS[1], ARGV[1])")
# What is beyond the bounds goes, the documents used longest ago first. Where one of the keys was pushed out by Redis
# itself, the others do not tell how much there is: then all of it begins anew.
KEEP = Script("""
local texts, used, bytes = KEYS[1], KEYS[2], KEYS[3]
local id, text = ARGV[1], ARGV[2]
local most, most_bytes, seconds = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local now = tonumber(redis.call('TIME')[1])
if redis.call('EXISTS', texts, used, bytes) < 3 then
  redis.call('UNLINK', texts, used, bytes)
end
redis.call('INCRBY', bytes, #text - redis.call('HSTRLEN', texts, id))
redis.call('HSET', texts, id, text)
redis.call('ZADD', used, now, id)
while true do
  local oldest = redis.call('ZRANGE', used, 0, 0, 'WITHSCORES')
  local many = redis.call('ZCARD', used) > most or tonumber(redis.call('GET', bytes)) > most_bytes
  if not oldest[1] or not (many or tonumber(oldest[2]) <= now - seconds) then
    break
  end
  redis.call('DECRBY', bytes, redis.call('HSTRLEN', texts, oldest[1]))
  redis.call('HDEL', texts, oldest[1])
  redis.call('ZREM', used, oldest[1])
end
for _, key in ipairs(KEYS) do
  redis.call('EXPIRE', key, seconds)
end
return 1
""")


async def find(cache: Cache, digest: str) -> bytes | None:
    """What is kept under that hash; None where there is nothing, or Redis does not say in time."""
    answer: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
    cache.run(FIND, KEYS, [digest], once(answer))
    return await answer or None


def keep(cache: Cache, digest: str, text: str) -> None:
    """Keep it for a day from now, without waiting until it is."""
    cache.run(KEEP, KEYS, [digest, text.encode(), MOST, MOST_BYTES, SECONDS], _whatever)


def _whatever(reply: object) -> None:
    """A document that was not kept is sent again by whoever names it."""
