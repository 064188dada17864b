-- Forgets all workers and gives their jobs back, for a server that knows that none is left. No attempt counts.
-- Returns how many jobs were given back.

relieve()
local returned = 0
for _, pending in ipairs(redis.pcall('XPENDING', stream, group, '-', '+', 1000000)) do  -- an error: the group is gone
  local entry = pending[1]
  local found = redis.call('XRANGE', stream, entry, entry)[1]
  local id = found and found[2][2]
  local job = key('job', id or '')
  drop(entry)
  if redis.call('HGET', job, 'entry') == entry then
    redis.call('HSET', job, 'entry', redis.call('XADD', stream, '*', 'job', id))
    give_back(job)
    returned = returned + 1
  end
end
for _, worker in ipairs(redis.call('ZRANGE', key('workers'), 0, -1)) do forget(worker) end
return returned
