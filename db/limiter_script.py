"""How points are spent in Redis, in one step and by its own clock."""

LIMIT = "segmentql:limit:"

# For each bucket: what a full one is worth in microseconds, and how many steps follow; and of each step what the points
# are worth, the fee that is taken where there are too few points, as far as there is so much, and how many times over.
# Answers for each how far away the bucket is from being full before the first step: who knows that, and the steps,
# knows what came of each (db/limiter.py). What lies further away than an empty bucket takes is of another policy, or of
# a clock that was set back since: it counts for nothing.
SPEND = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local found, next = {}, 1
for i, key in ipairs(KEYS) do
  local most, steps = tonumber(ARGV[next]), tonumber(ARGV[next + 1])
  next = next + 2
  local full = tonumber(redis.call('GET', key) or now)
  if full < now or full > now + most then
    full = now
  end
  local before = full - now
  local ahead = before
  for _ = 1, steps do
    local cost, fee = tonumber(ARGV[next]), tonumber(ARGV[next + 1])
    for _ = 1, tonumber(ARGV[next + 2]) do
      if ahead + cost <= most then
        ahead = ahead + cost
      else
        ahead = ahead + math.min(fee, most - ahead)
      end
    end
    next = next + 3
  end
  if ahead > before then
    redis.call('SET', key, string.format('%.0f', now + ahead), 'PX', math.ceil(ahead / 1000))
  end
  found[i] = before
end
return found
"""
