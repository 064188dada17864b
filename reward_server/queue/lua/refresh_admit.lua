-- Admits a refresh. If the id is known and the refresh succeeded or is still running, nothing changes. A refresh that
-- failed is started again.
-- ARGV: id, run, request, fingerprint, life_ms, keep_s, the smallest number of clips of each origin.
-- Returns {'admitted'}, or the reason for a refusal: {'conflict'}, {'running'}, {'few', real clips, rollouts, jobs whose
-- clips were not kept}.

local id, run, request, fingerprint, life_ms, keep_s, min_clips = unpack(ARGV)
local refresh = key('refresh', id)
local state, same, due_ms, version = unpack(redis.call('HMGET', refresh, 'state', 'fingerprint', 'due_ms', 'version'))
if state then
  if same ~= fingerprint then return {'conflict'} end
  if version or (state ~= 'done' and tonumber(due_ms) > now) then return {'admitted'} end
end
local other = redis.call('GET', key('refreshing', run))
if other and other ~= id then return {'running'} end
local real = redis.call('HLEN', key('kept-clips', 'real', run))
local rollouts = redis.call('HLEN', key('kept-clips', 'rollout', run))
if math.min(real, rollouts) < tonumber(min_clips) then
  return {'few', real, rollouts, redis.call('ZCARD', key('missing', 'real', run))
    + redis.call('ZCARD', key('missing', 'rollout', run))}
end

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
