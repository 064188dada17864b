-- The stream of jobs that have no outcome yet, and its consumer group.

local stream = key('queue')

-- The worker that holds an entry, or nil.
local function holder(entry)
  local pending = redis.pcall('XPENDING', stream, group, entry, entry, 1)  -- an error: the group is gone
  return pending[1] and pending[1][2]
end

local function drop(entry)
  redis.call('XACK', stream, group, entry)
  redis.call('XDEL', stream, entry)
end
