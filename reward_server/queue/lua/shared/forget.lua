-- Forgets a worker. One that still holds jobs stays a consumer of the group, because deleting it would lose them.
-- Needs stream.lua.

local function forget(worker)
  redis.call('HDEL', key('models'), worker)
  local pending = redis.pcall('XPENDING', stream, group, '-', '+', 1, worker)  -- an error: the group is gone
  if pending[1] then return end
  redis.call('ZREM', key('workers'), worker)
  redis.pcall('XGROUP', 'DELCONSUMER', stream, group, worker)
end
