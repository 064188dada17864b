"""The queue's transitions as Lua: each is one transaction, and each may be sent twice without doing more.

A connection can break after a command was run and before its answer came, and redis-py then sends it
again; hence job ids and claim tokens are made by the caller, and every script looks before it writes.
Redis keeps the only clock (leases, deadlines, lifetimes), so machines need not agree on the time.
Commands of Redis 6.2 at most. Keys and their lifetimes: see jobs.py.
"""

from __future__ import annotations

GROUP = "workers"

_COMMON = """
local prefix = KEYS[1]
local function key(...) return table.concat({prefix, ...}, ':') end
local stream, group = key('queue'), 'workers'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- A full Redis (maxmemory, noeviction) refuses a script whose first write may grow. What takes work out of
-- the queue must go on, or the queue could never shrink: such scripts open with a write that cannot grow.
local function relieve() redis.call('DEL', key('nothing')) end

local function holder(entry)
  local pending = redis.pcall('XPENDING', stream, group, entry, entry, 1)  -- an error: the group is gone
  return pending[1] and pending[1][2]
end

local function drop(entry)
  redis.call('XACK', stream, group, entry)
  redis.call('XDEL', stream, entry)
end
"""

# settle: the one way a job ends. The first outcome wins, every later one changes nothing.
_SETTLE = """
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
"""

# version_of: who judges a job. Its pin, else the run's latest version, else '': whatever a worker has loaded. The
# first job of a (run, group) chooses for all, and '' is then the base version by name, so that no group can mix; nil
# where no worker has ever named one.
_VERSION = """
local chosen = {}
local function version_of(run, group, pin)
  local latest = run ~= '' and redis.call('LINDEX', key('versions', run), 0)
  local version = pin ~= '' and pin or latest or ''
  if run == '' or group == '' then return version end
  local bound = key('group', #run, run, group)
  version = chosen[bound] or redis.call('GET', bound) or (version ~= '' and version) or redis.call('GET', key('base'))
    or nil
  chosen[bound] = version
  return version
end
"""

# start: a claimed entry becomes a running job; the answer is all a worker must know. A stale entry is dropped.
_START = """
local function start(entry, id, token)
  local job = key('job', id)
  local state, current, mine, attempts, admitted_ms, due_ms, media, context, version = unpack(redis.call('HMGET', job,
    'state', 'entry', 'token', 'attempts', 'admitted_ms', 'due_ms', 'media', 'context', 'version'))
  if not state or state == 'done' or current ~= entry then drop(entry) return nil end
  if mine ~= token then
    attempts = redis.call('HINCRBY', job, 'attempts', 1)
    redis.call('HSET', job, 'state', 'running', 'token', token, 'queue_ms', now - admitted_ms)
    if attempts > 1 then redis.call('HINCRBY', key('counts'), 'redelivered', 1) end
  end
  return {entry, id, tonumber(attempts), now - admitted_ms, due_ms - now, media, context, version or ''}
end
"""

# Makes an empty Redis ready; answers when that was, and which run of the server this is. Another time means that Redis
# lost its data meanwhile, another run that it may have lost the last second (AOF everysec). The group begins at 0,
# so that what was queued before is not skipped.
BEGIN = (
    _COMMON
    + """
relieve()
redis.pcall('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')  -- an error: it exists
redis.call('HSETNX', key('counts'), 'began_ms', now)
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
return {redis.call('HGET', key('counts'), 'began_ms'), run}
"""
)

# ARGV: dry run?, jobs, cost and bytes at most, job_ttl_s, keep_s, then per job: id, media, bytes, cost, context,
# run, idempotency key, fingerprint, deadline_ms or '', kind and outcome of a clip refused at the door or '', '',
# group, pinned version or ''.
ADMIT = (
    _COMMON
    + _SETTLE
    + _VERSION
    + """
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
      local run, group, pin = ARGV[at + 5], ARGV[at + 11], ARGV[at + 12]
      local version = version_of(run, group, pin)
      if not version then return refuse({'unbound', group}) end
      if pin ~= '' and pin ~= version then return refuse({'version', group, version, pin}) end
      versions[at] = version
    end
  end
end

if asked.jobs > 0 then
  local depth = redis.call('HMGET', key('depth'), 'jobs', 'cost', 'bytes')
  local jobs, cost, bytes = tonumber(depth[1] or 0), tonumber(depth[2] or 0), tonumber(depth[3] or 0)
  -- Cost is an estimate: an empty queue takes whatever comes, or a large clip could never be scored.
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
for at = 7, #ARGV, 13 do  -- what was sent again for a job that is already here
  if ids[(at - 7) / 13 + 1] ~= ARGV[at] then redis.call('UNLINK', key('payload', ARGV[at])) end
end
return {'admitted', ids}
"""
)

# ARGV: token, then entry and job id of each entry just read. Answers the rows of `start`.
START = (
    _COMMON
    + _START
    + """
relieve()
local rows = {}
for at = 2, #ARGV, 2 do
  local row = start(ARGV[at], ARGV[at + 1], ARGV[1])
  if row then table.insert(rows, row) end
end
return rows
"""
)

# ARGV: worker, token, lease_ms. Takes over the oldest job whose worker has been silent for a lease; a row or nothing.
RECLAIM = (
    _COMMON
    + _START
    + """
relieve()
local worker, token, lease_ms = unpack(ARGV)
local function job_of(entry)
  local found = redis.call('XRANGE', stream, entry, entry)[1]
  return found and found[2][2]
end

local mine = redis.pcall('XPENDING', stream, group, '-', '+', 64, worker)
for _, pending in ipairs(mine) do  -- the answer to this very claim was lost: give it again
  local id = job_of(pending[1])
  if id and redis.call('HGET', key('job', id), 'token') == token then return start(pending[1], id, token) or false end
end
local silent = redis.pcall('XPENDING', stream, group, 'IDLE', lease_ms, '-', '+', 8)
for _, pending in ipairs(silent) do
  local entry = pending[1]
  local id = job_of(entry)
  if id then
    redis.call('XCLAIM', stream, group, worker, 0, entry, 'JUSTID')
    local row = start(entry, id, token)
    if row then return row end
  else
    drop(entry)  -- somebody trimmed the stream; the job itself ends when it is due
  end
end
return false
"""
)

# ARGV: worker, then entries. Answers those it still holds, whose leases begin anew.
RENEW = (
    _COMMON
    + """
local kept = {}
for at = 2, #ARGV do
  if holder(ARGV[at]) == ARGV[1] then
    redis.call('XCLAIM', stream, group, ARGV[1], 0, ARGV[at], 'JUSTID')
    table.insert(kept, ARGV[at])
  end
end
return kept
"""
)

# ARGV: worker, then entry and job id of each. A fresh entry wakes a waiting worker at once, which a pending one would
# not; the attempt does not count, since nobody died.
HAND_BACK = (
    _COMMON
    + """
relieve()
local returned = 0
for at = 2, #ARGV, 2 do
  local entry, job = ARGV[at], key('job', ARGV[at + 1])
  if holder(entry) == ARGV[1] and redis.call('HGET', job, 'entry') == entry then
    drop(entry)
    redis.call('HSET', job, 'state', 'queued', 'entry', redis.call('XADD', stream, '*', 'job', ARGV[at + 1]))
    redis.call('HINCRBY', job, 'attempts', -1)
    redis.call('HDEL', job, 'token')
    returned = returned + 1
  end
end
return returned
"""
)

# ARGV: job id, kind, outcome, batch size, keep_s, dead letter or ''. Answers whether this outcome was the first.
FINISH = (
    _COMMON
    + _SETTLE
    + """
local attempts = redis.call('HGET', key('job', ARGV[1]), 'attempts')
local settled = settle(ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5])
if settled == 1 and ARGV[6] ~= '' then
  redis.call('XADD', key('dead'), 'MAXLEN', '~', 1024, '*', 'job', ARGV[1], 'attempts', attempts, 'letter', ARGV[6])
  redis.call('HINCRBY', key('counts'), 'dead', 1)
end
return settled
"""
)

# Answers up to 64 pairs of job id and context whose time is up, oldest first.
OVERDUE = (
    _COMMON
    + """
local rows = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('due'), '-inf', now, 'LIMIT', 0, 64)) do
  local context = redis.call('HGET', key('job', id), 'context')
  if context then table.insert(rows, {id, context}) else redis.call('ZREM', key('due'), id) end
end
return rows
"""
)

_LEAVE = """
local function leave(worker)
  redis.call('HDEL', key('models'), worker)
  local pending = redis.pcall('XPENDING', stream, group, '-', '+', 1, worker)  -- an error: the group is gone
  if pending[1] then return end  -- deleting a consumer would drop the jobs it holds
  redis.call('ZREM', key('workers'), worker)
  redis.pcall('XGROUP', 'DELCONSUMER', stream, group, worker)
end
"""

# ARGV: worker, model, life_ms, the model's version. Also forgets the workers that have been silent for their life.
ANNOUNCE = (
    _COMMON
    + _LEAVE
    + """
relieve()
redis.call('ZADD', key('workers'), now + ARGV[3], ARGV[1])
redis.call('HSET', key('models'), ARGV[1], ARGV[2])
redis.call('SET', key('base'), ARGV[4])
for _, silent in ipairs(redis.call('ZRANGEBYSCORE', key('workers'), '-inf', now)) do leave(silent) end
return 1
"""
)

# ARGV: worker.
LEAVE = _COMMON + _LEAVE + "leave(ARGV[1]) return 1"

# Answers the models of the workers that live, latest announcement last.
MODELS = (
    _COMMON
    + """
local live = redis.call('ZRANGEBYSCORE', key('workers'), now, '+inf')
if #live == 0 then return {} end
return redis.call('HMGET', key('models'), unpack(live))
"""
)

ALL = (BEGIN, ADMIT, START, RECLAIM, RENEW, HAND_BACK, FINISH, OVERDUE, ANNOUNCE, LEAVE, MODELS)
