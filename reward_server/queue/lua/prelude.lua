-- What every script begins with: the names of the keys and the time.
-- scripts.py puts `local group = '...'`, the name of the consumer group, in front of it.

local prefix = KEYS[1]
local function key(...) return table.concat({prefix, ...}, ':') end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- A full Redis (maxmemory, noeviction) refuses a script whose first write may need memory. Work must still be able to
-- leave the queue, or the queue could never shrink. Scripts that take work out therefore begin with this write, which
-- needs none.
local function relieve() redis.call('DEL', key('nothing')) end
