-- Makes a claimed entry a running job. Needs stream.lua and lease.lua.
-- Returns the row that a worker needs: entry, id, attempts, ms in the queue, ms until it is due, media, context,
-- version.
-- Drops the entry and returns nil if the job has ended or has another entry.

local function start(entry, id, token)
  local job = key('job', id)
  local state, current, admitted_ms, due_ms, media, context, version = unpack(redis.call('HMGET', job,
    'state', 'entry', 'admitted_ms', 'due_ms', 'media', 'context', 'version'))
  if not state or state == 'done' or current ~= entry then drop(entry) return nil end
  local attempts, is_new = take(job, token)
  if is_new then
    redis.call('HSET', job, 'queue_ms', now - admitted_ms)
    if attempts > 1 then redis.call('HINCRBY', key('counts'), 'redelivered', 1) end
  end
  return {entry, id, attempts, now - admitted_ms, due_ms - now, media, context, version or ''}
end
