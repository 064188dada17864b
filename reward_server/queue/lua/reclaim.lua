-- Takes over the oldest job whose worker has not renewed its lease.
-- ARGV: worker, token, lease_ms. Returns a row of `start`, or nothing.

relieve()
local worker, token, lease_ms = unpack(ARGV)
local function job_of(entry)
  local found = redis.call('XRANGE', stream, entry, entry)[1]
  return found and found[2][2]
end

local mine = redis.pcall('XPENDING', stream, group, '-', '+', 64, worker)
for _, pending in ipairs(mine) do  -- if the answer to this claim was lost, give it again
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
    drop(entry)  -- the stream was trimmed from outside; the job itself ends when it is due
  end
end
return false
