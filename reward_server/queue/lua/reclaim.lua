-- Takes over the oldest job whose worker has not renewed its lease.
-- ARGV: worker, token, lease_ms, loaded version, its fits. Returns a row of `start`, or nothing.

relieve()
local worker, token, lease_ms, loaded, fits = unpack(ARGV)
local lanes = loaded == '' and {''} or {'', loaded}

for _, version in ipairs(lanes) do  -- if the answer to this claim was lost, give it again
  for _, pending in ipairs(redis.pcall('XPENDING', lane(version), group, '-', '+', 64, worker)) do
    local entry = name_of(pending[1], version)
    local id = job_of(entry)
    if id and redis.call('HGET', key('job', id), 'token') == token then
      return start(entry, id, token, loaded, fits) or false
    end
  end
end
for _, version in ipairs(lanes) do
  for _, pending in ipairs(redis.pcall('XPENDING', lane(version), group, 'IDLE', lease_ms, '-', '+', 8)) do
    local entry = name_of(pending[1], version)
    local id = job_of(entry)
    if id then
      redis.call('XCLAIM', lane(version), group, worker, 0, pending[1], 'JUSTID')
      local row = start(entry, id, token, loaded, fits)
      if row then return row end
    else
      drop(entry)  -- the stream was trimmed from outside; the job itself ends when it is due
    end
  end
end
return false
