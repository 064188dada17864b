-- Makes a claimed entry a running job. Needs stream.lua, turns.lua, lease.lua and lanes.lua.
-- `loaded` is the version that the worker has loaded, or '' for one that takes any job; `fits` is the preprocessing
-- digest, by which it tells whether it can load a run's version.
-- Returns the row that a worker needs: entry, id, attempts, ms in the queue, ms until it is due, media, context,
-- version. Also returns whether this claim is new (lease.lua).
-- Returns nil, and drops the entry, if the job has ended, has another entry, or waits for a worker that can judge it.

-- The base version whose workers can judge a job, or nil if this worker can. A version that nobody knows goes to any
-- worker, which ends the job with an error that says so.
local function elsewhere(version, held, held_fits, loaded, fits)
  if loaded == '' or version == '' or version == loaded then return nil end
  local base = version
  if held and held ~= '' then
    if held_fits == '' or held_fits == fits then return nil end
    base = redis.call('HGET', key('version', version), 'base') or ''
  end
  return base ~= loaded and redis.call('SISMEMBER', key('lanes'), base) == 1 and base or nil
end

local function set_aside(job, id, run, base, due_ms)
  redis.call('HSET', job, 'state', 'queued', 'entry', 'waits@' .. base)
  redis.call('HDEL', job, 'token')
  keep_lane(base, due_ms + GRACE_MS)
  wait(base, owner_of(id), run, {id})
  top_up(base)
end

local function start(entry, id, token, loaded, fits)
  local job = key('job', id)
  local state, current, admitted_ms, due_ms, media, context, run, version, held, held_fits, held_by, attempts = unpack(
    redis.call('HMGET', job, 'state', 'entry', 'admitted_ms', 'due_ms', 'media', 'context', 'run', 'version', 'held',
      'fits', 'token', 'attempts'))
  current, moving[id] = moving[id] or current, nil
  if not state or state == 'done' or current ~= entry then drop(entry) return nil end
  local base = elsewhere(version, held, held_fits, loaded, fits)
  if base then
    drop(entry)
    set_aside(job, id, run, base, due_ms)
    return nil
  end
  local claims, is_new = take(job, token, held_by, attempts, 'queue_ms', now - admitted_ms, 'entry', entry)
  if is_new and claims > 1 then redis.call('HINCRBY', key('counts'), 'redelivered', 1) end
  return {entry, id, claims, now - admitted_ms, due_ms - now, media, context, version or ''}, is_new
end
