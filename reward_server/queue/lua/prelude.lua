-- Every script begins with this file: it defines the keys and the time.
-- scripts.py puts `local group = '...'`, the name of the consumer group, in front of it.

local prefix = KEYS[1]
local function key(...) return table.concat({prefix, ...}, ':') end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- A full Redis (maxmemory, noeviction) refuses a script whose first write may need memory. Jobs must still be able to
-- leave the queue, or it could never shrink. Scripts that take jobs out therefore begin with this write, which needs no
-- memory, or with another such write.
local function relieve() redis.call('DEL', key('nothing')) end
