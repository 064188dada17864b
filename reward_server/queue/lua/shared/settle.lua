-- Ends a job. Every job ends here. The first outcome is final, and later ones change nothing.
-- Needs stream.lua. Returns 1 if this outcome was the first, else 0.

local function settle(id, kind, outcome, batch, keep_s)
  local job = key('job', id)
  local state, entry, cost, bytes, run, idempotency, admitted_ms, queue_ms = unpack(
    redis.call('HMGET', job, 'state', 'entry', 'cost', 'bytes', 'run', 'idempotency', 'admitted_ms', 'queue_ms'))
  if not state or state == 'done' then return 0 end
  relieve()
  redis.call('UNLINK', key('payload', id))
  if entry ~= '' then drop(entry) end
  redis.call('HSET', job, 'state', 'done', 'outcome', outcome)
  redis.call('HDEL', job, 'context', 'entry', 'token')
  redis.call('EXPIRE', job, keep_s)
  redis.call('ZREM', key('due'), id)
  if idempotency ~= '' then redis.call('EXPIRE', key('idempotency', idempotency), keep_s) end
  redis.call('HINCRBY', key('depth'), 'jobs', -1)
  redis.call('HINCRBY', key('depth'), 'cost', 0 - cost)  -- not -cost: Lua writes that as '-0'
  redis.call('HINCRBY', key('depth'), 'bytes', 0 - bytes)
  redis.call('HINCRBY', key('counts'), kind, 1)
  local number = redis.call('HINCRBY', key('counts'), 'finished', 1)
  redis.call('XADD', key('finished'), 'MAXLEN', '~', 16384, '*', 'job', id, 'run', run,
    'number', number, 'queue_ms', queue_ms or now - admitted_ms, 'batch', batch)
  redis.call('EXPIRE', key('finished'), keep_s)
  if run ~= '' then
    redis.call('XADD', key('run', run), '*', 'job', id, 'outcome', outcome)  -- protos/results.py
    redis.call('XTRIM', key('run', run), 'MINID', now - keep_s * 1000)
    redis.call('EXPIRE', key('run', run), keep_s)
  end
  return 1
end
