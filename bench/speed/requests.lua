-- Sends the bodies of a file, one a line, each with its turn; says in JSON what became of them.
-- With a rate as second argument each is sent when its time has come, as long as a connection is free.
local ffi = require("ffi")
ffi.cdef [[
  typedef struct { long seconds, nanoseconds; } moment;
  int clock_gettime(int clock, moment *now);
]]
local moment = ffi.new("moment")

local function now_ms()
  ffi.C.clock_gettime(1, moment)
  return tonumber(moment.seconds) * 1e3 + tonumber(moment.nanoseconds) / 1e6
end

function init(arguments)
  requests, position, wrapped = {}, 0, 0
  for line in io.lines(arguments[1]) do
    requests[#requests + 1] = wrk.format("POST", nil, nil, line)
  end
  local rate = tonumber(arguments[2])
  if rate then
    local due = now_ms()
    -- wrk asks for it before each request of any connection; what it is behind is sent at once.
    function delay()
      due = due + 1e3 / rate
      return math.max(0, math.floor(due - now_ms() + 0.5))
    end
  end
end

function setup(thread)
  threads = threads or {}
  threads[#threads + 1] = thread
end

function request()
  position = position + 1
  if position > #requests then
    position, wrapped = 1, wrapped + 1
  end
  return requests[position]
end

function done(summary, latency)
  local all = 0
  for _, thread in ipairs(threads) do all = all + thread:get("wrapped") end
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "microseconds": %d, "p50": %d, "p99": %d, "wrapped": %d, "refused": %d, "broken": %d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), all,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
