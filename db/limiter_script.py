"""How points are spent in Redis, in one step and by its own clock."""

LIMIT = b"segmentql:limit:"

# For each bucket, in microseconds: what the points are worth, what a full bucket is worth, and the fee that is taken
# where there are too few points, as far as there is so much. Answers for each whether the points were spent, and how
# far away the bucket is from being full. What lies further away than an empty bucket takes is of another policy, or of
# a clock that was set back since: it counts for nothing.
SPEND = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local spent = {}
for i, key in ipairs(KEYS) do
  local cost, most, fee = tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
  local full = tonumber(redis.call('GET', key) or now)
  if full < now or full > now + most then
    full = now
  end
  local allowed = full - now + cost <= most
  if not allowed then
    cost = math.min(fee, now + most - full)
  end
  local ahead = full - now + cost
  if cost > 0 then
    redis.call('SET', key, string.format('%.0f', full + cost), 'PX', math.ceil(ahead / 1000))
  end
  spent[2 * i - 1], spent[2 * i] = allowed and 1 or 0, ahead
end
return spent
"""
