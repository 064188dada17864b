-- Admits all jobs of a request, or none.
-- ARGV: JSON with `mode`, the `owner` and its quota; the largest numbers of jobs, cost and bytes, job_ttl_s, keep_s, then
-- 15 for each job: id, media, bytes, cost, context, run, idempotency key, fingerprint, deadline_ms or '', kind and outcome
-- of a clip that a door refused or '' and '', group, pinned version or '', payload, trace or ''.
-- `mode` is 'dry' for a dry run, 'staged' if the payloads are in Redis, or 'sent' if they are among the arguments.
-- Returns {'admitted', ids}, or the reason for a refusal: {'conflict', key, job}, {'unbound', group},
-- {'version', group, bound, pin}, {'unserved', group, bound}, {'full', jobs, cost, bytes}, {'quota', jobs, cost, bytes}
-- of the owner, or {'lost'} if a staged payload is gone. A dry run that is not refused reserves the bytes for STAGE_MS.

local STAGE_MS = 120000  -- admission.STAGE_S
local options = cjson.decode(ARGV[1])
local mode, max_jobs, max_cost, max_bytes, job_ttl_s, keep_s = options.mode, unpack(ARGV, 2, 6)
local ARGS = 15  -- for each job
local last_staged = mode == 'sent' and 0 or #ARGV  -- nothing was staged if the payloads are sent
local ids, fresh, versions, asked = {}, {}, {}, {jobs = 0, cost = 0, bytes = 0}
local fits, needed_ms = {}, {}  -- of the runs' versions in this call: `fits_of`, and until when the jobs need them
local unserved = {}  -- for the other versions: whether the live workers have only others

-- The bytes of other requests that are on their way to Redis, in all and of the owner. This one's own entry is `own`.
-- Nothing is removed here: after such a write, a full Redis would admit the jobs.
local staged, own = {all = 0, owner = 0}, nil
for _, member in ipairs(redis.call('ZRANGEBYSCORE', key('staged'), now, '+inf')) do
  local first, bytes = string.match(member, '^(.*):(%d+)$')
  if first == ARGV[7] then own = member else
    staged.all = staged.all + bytes
    if owner_of(first) == options.owner then staged.owner = staged.owner + bytes end
  end
end

local function refuse(answer)
  if own then redis.call('ZREM', key('staged'), own) end
  for at = 7, last_staged, ARGS do
    if redis.call('EXISTS', key('job', ARGV[at])) == 0 then
      redis.call('UNLINK', key('payload', ARGV[at]), key('trace', ARGV[at]))
    end
  end
  return answer
end

local job_keys = {}
for at = 7, #ARGV, ARGS do table.insert(job_keys, key('job', ARGV[at])) end
local sent_before = redis.call('EXISTS', unpack(job_keys)) > 0  -- the answer was lost, and the script is sent again
local again = {}  -- idempotency keys that are used again, after their job has expired
for at = 7, #ARGV, ARGS do
  local id, _, bytes, cost, _, _, idempotency, fingerprint, _, kind = unpack(ARGV, at, at + 9)
  local known = sent_before and redis.call('EXISTS', key('job', id)) == 1 and id
  if idempotency ~= '' and not known then
    local earlier, same = unpack(redis.call('HMGET', key('idempotency', idempotency), 'job', 'fingerprint'))
    if earlier and redis.call('EXISTS', key('job', earlier)) == 1 then
      if same ~= fingerprint then return refuse({'conflict', idempotency, earlier}) end
      known = earlier
    end
    again[idempotency] = earlier and true
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
      if version ~= '' and fits[version] == nil then fits[version] = fits_of(version) or false end
      if run == '' and group_id ~= '' and pin == '' and not fits[version] then
        if unserved[version] == nil then unserved[version] = #loaded_versions() > 0 and not is_loaded(version) end
        if unserved[version] then return refuse({'unserved', group_id, version}) end
      end
    end
  end
end

local depth = #fresh > 0 and redis.call('HMGET', key('depth'), 'jobs', 'cost', 'bytes')
if asked.jobs > 0 then
  local jobs, cost, bytes = tonumber(depth[1] or 0), tonumber(depth[2] or 0), tonumber(depth[3] or 0) + staged.all
  -- Cost is an estimate. An empty queue accepts any cost, because otherwise a large clip could never be scored.
  if jobs + asked.jobs > tonumber(max_jobs) or bytes + asked.bytes > tonumber(max_bytes)
    or (cost > 0 and cost + asked.cost > tonumber(max_cost)) then
    return refuse({'full', jobs, cost, bytes})
  end
  if options.quota then
    local held = redis.call('HMGET', key('owned', options.owner), 'jobs', 'cost', 'bytes')
    jobs, cost, bytes = tonumber(held[1] or 0), tonumber(held[2] or 0), tonumber(held[3] or 0) + staged.owner
    local most = options.quota
    if jobs + asked.jobs > most.jobs or bytes + asked.bytes > most.bytes
      or (cost > 0 and cost + asked.cost > most.cost) then
      return refuse({'quota', jobs, cost, bytes})
    end
  end
end
if mode == 'dry' then
  if asked.bytes > 0 then
    redis.call('ZADD', key('staged'), now + STAGE_MS, ARGV[7] .. ':' .. string.format('%d', asked.bytes))
    redis.call('ZREMRANGEBYSCORE', key('staged'), '-inf', now)
    redis.call('PEXPIRE', key('staged'), STAGE_MS)
  end
  return {'admitted', ids}
end

for _, at in ipairs(mode == 'staged' and fresh or {}) do
  if ARGV[at + 9] == '' and redis.call('EXISTS', key('payload', ARGV[at])) == 0 then return refuse({'lost'}) end
end
if #fresh > 0 then  -- also those that have already ended: they are subtracted below
  add_up(key('depth'), #fresh, asked.cost, asked.bytes, depth)
  redis.call('HINCRBY', key('counts'), 'admitted', #fresh)
  if options.owner ~= '' then add_up(key('owned', options.owner), #fresh, asked.cost, asked.bytes) end
end
local free = #fresh > 0 and free_in('') or 0  -- how many jobs can enter the stream at once
local waiting, runs = {}, {}  -- the other jobs by run, and the runs in their order
local due, ages, refused = {}, {}, {}  -- members and scores of the first two, and the jobs that have already ended
for _, at in ipairs(fresh) do
  local id, media, bytes, cost, context, run = unpack(ARGV, at, at + 5)
  local idempotency, fingerprint, deadline_ms, kind, outcome = unpack(ARGV, at + 6, at + 10)
  local payload, trace = unpack(ARGV, at + 13, at + 14)
  local version, bound_group = versions[at] or '', group_key(run, ARGV[at + 11])
  local due_ms = now + math.min(tonumber(deadline_ms) or math.huge, job_ttl_s * 1000)
  if kind ~= '' then bytes, cost = 0, 0 end
  local entry = ''
  if kind == '' and free > 0 then
    entry, free = redis.call('XADD', stream, '*', 'job', id), free - 1
  elseif kind == '' then
    entry = 'waits@'
    if not waiting[run] then
      waiting[run] = {}
      table.insert(runs, run)
    end
    table.insert(waiting[run], id)
  end
  if fits[version] then
    redis.call('ZADD', key('bound', version), due_ms + GRACE_MS, id)
    needed_ms[version] = math.max(needed_ms[version] or 0, due_ms + GRACE_MS)
  end
  redis.call('HSET', key('job', id), 'state', 'queued', 'entry', entry, 'media', media, 'bytes', bytes, 'cost', cost,
    'context', context, 'run', run, 'idempotency', idempotency, 'admitted_ms', now, 'due_ms', due_ms, 'attempts', 0,
    'version', version, 'held', fits[version] and version or '', 'fits', fits[version] or '', 'group', bound_group)
  if kind ~= '' then table.insert(refused, {id = id, kind = kind, outcome = outcome, batch = 0})
  else
    if mode == 'sent' then redis.call('SET', key('payload', id), payload, 'PXAT', due_ms + GRACE_MS)
    else redis.call('PEXPIREAT', key('payload', id), due_ms + GRACE_MS) end
    if trace ~= '' then redis.call('SET', key('trace', id), trace, 'EX', job_ttl_s) end
    for _, part in ipairs({due_ms, id}) do table.insert(due, part) end
    for _, part in ipairs({now, id}) do table.insert(ages, part) end
  end
  if idempotency ~= '' then
    redis.call('HSET', key('idempotency', idempotency), 'job', id, 'fingerprint', fingerprint)
    if again[idempotency] then redis.call('PERSIST', key('idempotency', idempotency)) end
  end
end
for _, run in ipairs(runs) do wait('', options.owner, run, waiting[run]) end
if #due > 0 then
  redis.call('ZADD', key('due'), unpack(due))
  redis.call('ZADD', key('ages'), unpack(ages))
end
settle(refused, keep_s)
if own then redis.call('ZREM', key('staged'), own) end
for version, until_ms in pairs(needed_ms) do extend(version, until_ms) end
for bound, version in pairs(chosen) do redis.call('SET', bound, version, 'EX', job_ttl_s + keep_s) end
for at = 7, last_staged, ARGS do  -- remove payloads that were staged again for a known job
  if ids[(at - 7) / ARGS + 1] ~= ARGV[at] then redis.call('UNLINK', key('payload', ARGV[at]), key('trace', ARGV[at])) end
end
return {'admitted', ids}
