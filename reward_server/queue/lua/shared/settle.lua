-- Ends jobs. Every job ends here. The first outcome is final, and later ones change nothing.
-- Needs stream.lua, turns.lua and hold.lua. What many jobs have in common is written once for all of them.

local function whole(number) return string.format('%.0f', number) end

-- Adds to the sums over unfinished jobs in a hash; `before` has them if they were just read. Returns how many jobs are
-- left.
local function add_up(hash, jobs, cost, bytes, before)
  before = before or redis.call('HMGET', hash, 'jobs', 'cost', 'bytes')
  jobs = (before[1] or 0) + jobs
  redis.call('HSET', hash, 'jobs', whole(jobs), 'cost', whole((before[2] or 0) + cost),
    'bytes', whole((before[3] or 0) + bytes))
  return jobs
end

local FIELDS = {'state', 'entry', 'cost', 'bytes', 'run', 'idempotency', 'admitted_ms', 'queue_ms', 'held', 'group'}

-- The rows of those among `asked` that have not ended yet, each once, and for each that was asked 1 if it is among them,
-- else 0.
local function unfinished(asked)
  local rows, firsts, seen = {}, {}, {}
  for at, one in ipairs(asked) do
    local row, found = {id = one.id, kind = one.kind, outcome = one.outcome, brief = one.brief, batch = one.batch},
      redis.call('HMGET', key('job', one.id), unpack(FIELDS))
    for number, name in ipairs(FIELDS) do row[name] = found[number] end
    firsts[at] = row.state and row.state ~= 'done' and not seen[one.id] and 1 or 0
    if firsts[at] == 1 then table.insert(rows, row) end
    seen[one.id] = true
  end
  return rows, firsts
end

-- Takes the jobs out of their lines and streams, with their clips.
local function take_out(rows)
  local clips, entries = {}, {}
  for _, row in ipairs(rows) do
    table.insert(clips, key('payload', row.id))
    table.insert(clips, key('trace', row.id))
    if row.entry ~= '' and not string.find(row.entry, '^waits@') then table.insert(entries, row.entry) end
  end
  redis.call('UNLINK', unpack(clips))  -- the first write, because it works in a full Redis (prelude.lua)
  drop(unpack(entries))
  for _, row in ipairs(rows) do
    local line = string.match(row.entry, '^waits@(.*)$')
    if line then leave_line(line, owner_of(row.id), row.run, row.id) end
  end
end

local function end_one(row, keep_s)
  redis.call('HSET', key('job', row.id), 'state', 'done', 'outcome', row.outcome, 'context', '', 'entry', '',
    'token', '')
  redis.call('EXPIRE', key('job', row.id), keep_s)
  if row.held and row.held ~= '' then release(row.held, row.id, row.group, now + keep_s * 1000) end
  if row.idempotency ~= '' then redis.call('EXPIRE', key('idempotency', row.idempotency), keep_s) end
end

-- Takes the jobs out of all sums: those of the queue, and those of their API keys.
local function subtract(rows)
  local ids, owners, all = {}, {}, {jobs = 0, cost = 0, bytes = 0}
  for _, row in ipairs(rows) do
    local owner = owner_of(row.id)
    owners[owner] = owners[owner] or {jobs = 0, cost = 0, bytes = 0}
    for _, sum in ipairs({all, owners[owner]}) do
      sum.jobs, sum.cost, sum.bytes = sum.jobs - 1, sum.cost - row.cost, sum.bytes - row.bytes
    end
    table.insert(ids, row.id)
  end
  redis.call('ZREM', key('due'), unpack(ids))
  redis.call('ZREM', key('ages'), unpack(ids))
  add_up(key('depth'), all.jobs, all.cost, all.bytes)
  owners[''] = nil
  for owner, sum in pairs(owners) do
    if add_up(key('owned', owner), sum.jobs, sum.cost, sum.bytes) <= 0 then redis.call('DEL', key('owned', owner)) end
  end
end

-- Counts the ends, and tells those who wait for them.
local function tell_ends(rows, keep_s)
  local kinds, runs = {}, {}
  for _, row in ipairs(rows) do kinds[row.kind] = (kinds[row.kind] or 0) + 1 end
  for kind, num in pairs(kinds) do redis.call('HINCRBY', key('counts'), kind, num) end
  local before = redis.call('HINCRBY', key('counts'), 'finished', #rows) - #rows
  for at, row in ipairs(rows) do
    redis.call('XADD', key('finished'), 'MAXLEN', '~', 16384, '*', 'job', row.id, 'run', row.run,
      'number', before + at, 'queue_ms', row.queue_ms or now - row.admitted_ms, 'batch', row.batch)
    if row.run ~= '' then
      local told = row.brief ~= '' and row.brief or row.outcome  -- protos/results.py
      redis.call('XADD', key('run', row.run), '*', 'job', row.id, 'outcome', told)
      runs[row.run] = true
    end
  end
  redis.call('EXPIRE', key('finished'), keep_s)
  for run in pairs(runs) do
    redis.call('XTRIM', key('run', run), 'MINID', now - keep_s * 1000)
    redis.call('EXPIRE', key('run', run), keep_s)
  end
end

-- Ends jobs, each with `id`, `kind`, `outcome`, `brief` and `batch`. The stream of its run gets `brief`, or the outcome
-- if that is empty. Returns 1 for each whose outcome was the first, else 0.
local function settle(asked, keep_s)
  local rows, firsts = unfinished(asked)
  if #rows > 0 then
    take_out(rows)
    for _, row in ipairs(rows) do end_one(row, keep_s) end
    subtract(rows)
    tell_ends(rows, keep_s)
  end
  return firsts
end
