-- Lanes of the versions that workers bring. Needs stream.lua.

local GRACE_MS = 60000  -- a job that is due ends within this time, as long as any process is alive
local LANE_MS = 86400000  -- life of a lane after the latest heartbeat of a worker that reads it

-- Makes a version's lane live until `until_ms` at least.
local function keep_lane(version, until_ms)
  if redis.call('PTTL', lane(version)) < until_ms - now then redis.call('PEXPIREAT', lane(version), until_ms) end
end

-- Makes a lane for a worker that has just been started, or that finds Redis emptied.
local function open_lane(version)
  redis.pcall('XGROUP', 'CREATE', lane(version), group, '0', 'MKSTREAM')  -- an error: the group exists
  redis.call('SADD', key('lanes'), version)
  keep_lane(version, now + LANE_MS)
end

-- The versions that live workers have loaded, in the order of their heartbeats.
local function loaded_versions()
  local versions, workers = {}, redis.call('ZRANGEBYSCORE', key('workers'), now, '+inf')
  if #workers == 0 then return versions end
  for _, version in ipairs(redis.call('HMGET', key('loaded'), unpack(workers))) do
    if version then table.insert(versions, version) end
  end
  return versions
end

-- Whether a live worker has the version loaded.
local function is_loaded(version)
  for _, loaded in ipairs(loaded_versions()) do
    if loaded == version then return true end
  end
  return false
end
