-- Admits all jobs of a request, or none.
-- ARGV: '1' for a dry run, the largest numbers of jobs, cost and bytes, job_ttl_s, keep_s, then 13 for each job: id,
-- media, bytes, cost, context, run, idempotency key, fingerprint, deadline_ms or '', kind and outcome of a clip that a
-- door refused or '' and '', group, pinned version or ''.
-- Returns {'admitted', ids}, or the reason for a refusal: {'conflict', key, job}, {'unbound', group},
-- {'version', group, bound, pin}, {'full', jobs, cost, bytes}, or {'lost'} if a staged payload is gone.

local dry, max_jobs, max_cost, max_bytes, job_ttl_s, keep_s = ARGV[1] == '1', unpack(ARGV, 2, 6)
local ids, fresh, versions, asked = {}, {}, {}, {jobs = 0, cost = 0, bytes = 0}

local function refuse(answer)
  for at = 7, #ARGV, 13 do
    if redis.call('EXISTS', key('job', ARGV[at])) == 0 then redis.call('UNLINK', key('payload', ARGV[at])) end
  end
  return answer
end

for at = 7, #ARGV, 13 do
  local id, _, bytes, cost, _, _, idempotency, fingerprint, _, kind = unpack(ARGV, at, at + 9)
  local known = redis.call('EXISTS', key('job', id)) == 1 and id
  if idempotency ~= '' and not known then
    local earlier, same = unpack(redis.call('HMGET', key('idempotency', idempotency), 'job', 'fingerprint'))
    if earlier and redis.call('EXISTS', key('job', earlier)) == 1 then
      if same ~= fingerprint then return refuse({'conflict', idempotency, earlier}) end
      known = earlier
    end
  end
  table.insert(ids, known or id)
  if not known then
    table.insert(fresh, at)
    if kind == '' then
      asked.jobs, asked.cost, asked.bytes = asked.jobs + 1, asked.cost + cost, asked.bytes + bytes
      local run, group_id, pin = ARGV[at + 5], ARGV[at + 11], ARGV[at + 12]
      local version = version_of(run, group_id, pin)
      if not version then return refuse({'unbound', group_id}) end
      if pin ~= '' and pin ~= version then return refuse({'version', group_id, version, pin}) end
      versions[at] = version
    end
  end
end

if asked.jobs > 0 then
  local depth = redis.call('HMGET', key('depth'), 'jobs', 'cost', 'bytes')
  local jobs, cost, bytes = tonumber(depth[1] or 0), tonumber(depth[2] or 0), tonumber(depth[3] or 0)
  -- Cost is an estimate. An empty queue accepts any cost, because otherwise a large clip could never be scored.
  if jobs + asked.jobs > tonumber(max_jobs) or bytes + asked.bytes > tonumber(max_bytes)
    or (cost > 0 and cost + asked.cost > tonumber(max_cost)) then
    return refuse({'full', jobs, cost, bytes})
  end
end
if dry then return {'admitted', ids} end

for _, at in ipairs(fresh) do
  if ARGV[at + 9] == '' and redis.call('EXISTS', key('payload', ARGV[at])) == 0 then return refuse({'lost'}) end
end
for _, at in ipairs(fresh) do
  local id, media, bytes, cost, context, run = unpack(ARGV, at, at + 5)
  local idempotency, fingerprint, deadline_ms, kind, outcome = unpack(ARGV, at + 6, at + 10)
  local due_ms = now + math.min(tonumber(deadline_ms) or math.huge, job_ttl_s * 1000)
  if kind ~= '' then bytes, cost = 0, 0 end
  local entry = kind == '' and redis.call('XADD', stream, '*', 'job', id) or ''
  redis.call('HSET', key('job', id), 'state', 'queued', 'entry', entry, 'media', media, 'bytes', bytes, 'cost', cost,
    'context', context, 'run', run, 'idempotency', idempotency, 'admitted_ms', now, 'due_ms', due_ms, 'attempts', 0,
    'version', versions[at] or '')
  redis.call('PEXPIREAT', key('payload', id), due_ms + 60000)
  redis.call('ZADD', key('due'), due_ms, id)
  if idempotency ~= '' then
    redis.call('HSET', key('idempotency', idempotency), 'job', id, 'fingerprint', fingerprint)
    redis.call('PERSIST', key('idempotency', idempotency))
  end
  redis.call('HINCRBY', key('depth'), 'jobs', 1)
  redis.call('HINCRBY', key('depth'), 'cost', cost)
  redis.call('HINCRBY', key('depth'), 'bytes', bytes)
  redis.call('HINCRBY', key('counts'), 'admitted', 1)
  if kind ~= '' then settle(id, kind, outcome, 0, keep_s) end
end
for bound, version in pairs(chosen) do redis.call('SET', bound, version, 'EX', math.max(keep_s, job_ttl_s)) end
for at = 7, #ARGV, 13 do  -- remove payloads that were sent again for a known job
  if ids[(at - 7) / 13 + 1] ~= ARGV[at] then redis.call('UNLINK', key('payload', ARGV[at])) end
end
return {'admitted', ids}
