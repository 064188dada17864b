"""The transitions of refreshes and of what they train on and publish, as Lua: see transitions.py for the rules.

A refresh is queued -> running -> done, and as long as it is not done it is the only one of its run. It is
`due` at its deadline and can publish nothing after it; a worker that falls silent for a lease loses it to
another. Keys and their lifetimes: see refreshes.py and run_store.py.
"""

from __future__ import annotations

_COMMON = """
local prefix = KEYS[1]
local function key(...) return table.concat({prefix, ...}, ':') end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function tell(id)
  redis.call('XADD', key('refresh-news'), 'MAXLEN', '~', 64, '*', 'refresh', id)
  redis.call('EXPIRE', key('refresh-news'), 86400)
end

local function mine(id, token)  -- running, in time and not taken over
  local state, current, due_ms = unpack(redis.call('HMGET', key('refresh', id), 'state', 'token', 'due_ms'))
  return state == 'running' and current == token and tonumber(due_ms) > now
end

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
"""

_RENEW_VERSIONS = """
local function renew_versions(run, life_s)
  for _, version in ipairs(redis.call('LRANGE', key('versions', run), 0, -1)) do
    for _, kind in ipairs({'discriminators', 'training', 'version'}) do redis.call('EXPIRE', key(kind, version), life_s) end
  end
  redis.call('EXPIRE', key('versions', run), life_s)
end
"""

# ARGV: run, origin, job, packed motion, clips and bytes at most, life_s, the versions' life_s. The oldest make room.
KEEP_CLIP = (
    _COMMON
    + _RENEW_VERSIONS
    + """
local run, origin, job, data, max_clips, max_bytes, life_s, version_life_s = unpack(ARGV)
local clips, order, size = key('clips', origin, run), key('clip-order', origin, run), key('clip-bytes', origin, run)
if redis.call('HEXISTS', clips, job) == 1 then return 0 end
redis.call('HSET', clips, job, data)
redis.call('RPUSH', order, job)
local bytes = redis.call('INCRBY', size, #data)
while redis.call('LLEN', order) > tonumber(max_clips) or bytes > tonumber(max_bytes) do
  local oldest = redis.call('LPOP', order)
  bytes = redis.call('DECRBY', size, redis.call('HSTRLEN', clips, oldest))
  redis.call('HDEL', clips, oldest)
end
for _, kept in ipairs({clips, order, size}) do redis.call('EXPIRE', kept, life_s) end
renew_versions(run, version_life_s)
return 1
"""
)

# ARGV: id, run, request, fingerprint, life_ms, keep_s, clips of each origin at least. Only a refresh that succeeded or
# is under way is found again by its id; one that failed is tried anew.
ADMIT = (
    _COMMON
    + """
local id, run, request, fingerprint, life_ms, keep_s, min_clips = unpack(ARGV)
local refresh = key('refresh', id)
local state, same, due_ms, version = unpack(redis.call('HMGET', refresh, 'state', 'fingerprint', 'due_ms', 'version'))
if state then
  if same ~= fingerprint then return {'conflict'} end
  if version or (state ~= 'done' and tonumber(due_ms) > now) then return {'admitted'} end
end
local other = redis.call('GET', key('refreshing', run))
if other and other ~= id then return {'running'} end
local real, rollouts = redis.call('HLEN', key('clips', 'real', run)), redis.call('HLEN', key('clips', 'rollout', run))
if math.min(real, rollouts) < tonumber(min_clips) then return {'few', real, rollouts} end

due_ms = now + life_ms
redis.call('DEL', refresh)
redis.call('HSET', refresh, 'state', 'queued', 'run', run, 'request', request, 'fingerprint', fingerprint,
  'due_ms', due_ms, 'attempts', 0)
redis.call('PEXPIREAT', refresh, due_ms + keep_s * 1000)
redis.call('SET', key('refreshing', run), id)
redis.call('PEXPIREAT', key('refreshing', run), due_ms)
redis.call('ZADD', key('refreshes'), 0, id)
redis.call('PEXPIREAT', key('refreshes'), due_ms + keep_s * 1000)
tell(id)
return {'admitted'}
"""
)

# ARGV: id. How a refresh stands: state, ms left, then its version and response, or the code and message of its error.
LOOK = (
    _COMMON
    + """
local state, due_ms, version, response, code, message = unpack(redis.call('HMGET', key('refresh', ARGV[1]),
  'state', 'due_ms', 'version', 'response', 'code', 'message'))
if not state then return {} end
return {state, due_ms - now, version or '', response or '', code or '', message or ''}
"""
)

# ARGV: token, lease_ms. A refresh that nobody holds, or whose worker has been silent for a lease: id, attempts, ms
# left, request; or nothing.
CLAIM = (
    _COMMON
    + """
local token, lease_ms = unpack(ARGV)
for _, id in ipairs(redis.call('ZRANGE', key('refreshes'), 0, 63)) do
  local refresh, silent = key('refresh', id), tonumber(redis.call('ZSCORE', key('refreshes'), id)) <= now
  local state, held, due_ms, attempts, request = unpack(
    redis.call('HMGET', refresh, 'state', 'token', 'due_ms', 'attempts', 'request'))
  if not state or state == 'done' or tonumber(due_ms) <= now then
    redis.call('ZREM', key('refreshes'), id)
  elseif silent or held == token then  -- held by this token: the answer to this very claim was lost
    if held ~= token then attempts = redis.call('HINCRBY', refresh, 'attempts', 1) end
    redis.call('HSET', refresh, 'state', 'running', 'token', token)
    redis.call('ZADD', key('refreshes'), now + lease_ms, id)
    return {id, tonumber(attempts), due_ms - now, request}
  end
end
return false
"""
)

# ARGV: id, token, lease_ms. Begins its lease anew; 0 if it was taken over, is done or due.
RENEW = (
    _COMMON
    + """
local id, token, lease_ms = unpack(ARGV)
if not mine(id, token) then return 0 end
redis.call('ZADD', key('refreshes'), now + lease_ms, id)
return 1
"""
)

# ARGV: id, token. Another worker may have it at once, with no attempt counted.
HAND_BACK = (
    _COMMON
    + """
local id, token = unpack(ARGV)
if not mine(id, token) then return 0 end
redis.call('HSET', key('refresh', id), 'state', 'queued')
redis.call('HINCRBY', key('refresh', id), 'attempts', -1)
redis.call('HDEL', key('refresh', id), 'token')
redis.call('ZADD', key('refreshes'), 0, id)
tell(id)
return 1
"""
)

# ARGV: id, token, version, digest, response, versions kept, their life_s, keep_s. The cut-over: the staged version
# becomes the run's latest in the transaction that ends the refresh. 0: too late or taken over; -1: it was not staged.
PUBLISH = (
    _COMMON
    + _RENEW_VERSIONS
    + """
local id, token, version, digest, response, num_kept, life_s, keep_s = unpack(ARGV)
local run, published = unpack(redis.call('HMGET', key('refresh', id), 'run', 'version'))
if published == version then
  renew_versions(run, life_s)  -- sent again, it was staged again, under the short life of what is only staged
  return 1
end
if not mine(id, token) then return 0 end
if redis.call('EXISTS', key('discriminators', version), key('training', version)) < 2 then return -1 end
local versions = key('versions', run)
redis.call('LPUSH', versions, version)
redis.call('HSET', key('version', version), 'digest', digest, 'number',
  1 + (redis.call('HGET', key('version', redis.call('LINDEX', versions, 1) or ''), 'number') or 0))
while redis.call('LLEN', versions) > tonumber(num_kept) do
  local oldest = redis.call('RPOP', versions)
  redis.call('UNLINK', key('discriminators', oldest), key('training', oldest), key('version', oldest))
end
renew_versions(run, life_s)
redis.call('HINCRBY', key('counts'), 'refreshed', 1)
done(id, keep_s, 'version', version, 'response', response)
return 1
"""
)

# ARGV: id, token, code, message, keep_s. It ends without a version.
FAIL = (
    _COMMON
    + """
local id, token, code, message, keep_s = unpack(ARGV)
if not mine(id, token) then return 0 end
redis.call('HINCRBY', key('counts'), 'refresh_failed', 1)
done(id, keep_s, 'code', code, 'message', message)
return 1
"""
)

ALL = (KEEP_CLIP, ADMIT, LOOK, CLAIM, RENEW, HAND_BACK, PUBLISH, FAIL)
