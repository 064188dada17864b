-- Claims the oldest refresh that no worker holds, or whose worker has not renewed its lease.
-- ARGV: token, lease_ms. Returns id, attempts, ms left, request, or nothing.

local token, lease_ms = unpack(ARGV)
for _, id in ipairs(redis.call('ZRANGE', key('refreshes'), 0, 63)) do
  local refresh, silent = key('refresh', id), tonumber(redis.call('ZSCORE', key('refreshes'), id)) <= now
  local state, held, due_ms, request, before = unpack(redis.call('HMGET', refresh,
    'state', 'token', 'due_ms', 'request', 'attempts'))
  if not state or state == 'done' or tonumber(due_ms) <= now then
    redis.call('ZREM', key('refreshes'), id)
  elseif silent or held == token then  -- held by this token: the answer to this claim was lost
    local attempts = take(refresh, token, held, before)
    redis.call('ZADD', key('refreshes'), now + lease_ms, id)
    return {id, attempts, due_ms - now, request}
  end
end
return false
