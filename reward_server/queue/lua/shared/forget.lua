-- Forgets a worker. One that still holds jobs stays a consumer of the group, because deleting it would lose them.
-- Needs stream.lua.

local function forget(worker)
  redis.call('HDEL', key('models'), worker)
  redis.call('HDEL', key('loaded'), worker)
  local versions = all_lanes()
  for _, version in ipairs(versions) do
    local pending = redis.pcall('XPENDING', lane(version), group, '-', '+', 1, worker)  -- an error: the group is gone
    if pending[1] then return end
  end
  redis.call('ZREM', key('workers'), worker)
  for _, version in ipairs(versions) do redis.pcall('XGROUP', 'DELCONSUMER', lane(version), group, worker) end
end
