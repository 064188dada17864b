-- Functions shared by the scripts of a refresh.

-- Wakes the workers and doors that wait for news of refreshes.
local function tell(id)
  redis.call('XADD', key('refresh-news'), 'MAXLEN', '~', 64, '*', 'refresh', id)
  redis.call('EXPIRE', key('refresh-news'), 86400)
end

-- Whether the refresh is running under this token and not yet due.
local function mine(id, token)
  local state, current, due_ms = unpack(redis.call('HMGET', key('refresh', id), 'state', 'token', 'due_ms'))
  return state == 'running' and current == token and tonumber(due_ms) > now
end

-- Ends the refresh. The other arguments are fields and values for its hash.
local function done(id, keep_s, ...)
  local refresh = key('refresh', id)
  local run = redis.call('HGET', refresh, 'run')
  redis.call('HSET', refresh, 'state', 'done', ...)
  redis.call('HDEL', refresh, 'token', 'request')
  redis.call('EXPIRE', refresh, keep_s)
  redis.call('ZREM', key('refreshes'), id)
  if redis.call('GET', key('refreshing', run)) == id then redis.call('DEL', key('refreshing', run)) end
  tell(id)
end
