"""How points are spent in Redis, in one step and by its own clock."""

LIMIT = b"segmentql:limit:"

# For each bucket, in microseconds: what the points are worth, and what a full bucket is worth. Answers for each whether
# they were spent, and how far away the bucket is from being full. What lies further away than an empty bucket takes is
# of another policy, or of a clock that was set back since: it counts for nothing.
SPEND = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local spent = {}
for i, key in ipairs(KEYS) do
  local cost, most = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local full = tonumber(redis.call('GET', key) or now)
  if full < now or full > now + most then
    full = now
  end
  local ahead = full - now + cost
  if ahead > most then
    spent[2 * i - 1], spent[2 * i] = 0, full - now
  else
    if cost > 0 then
      redis.call('SET', key, string.format('%.0f', full + cost), 'PX', math.ceil(ahead / 1000))
    end
    spent[2 * i - 1], spent[2 * i] = 1, ahead
  end
end
return spent
"""
