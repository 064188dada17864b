-- Gives a worker's jobs back unfinished. Each gets a new entry, because a new entry wakes a waiting worker at once and
-- a pending one does not.
-- ARGV: worker, then entry and job id of each. Returns how many of them the worker still held.

relieve()
local returned = 0
for at = 2, #ARGV, 2 do
  local entry, job = ARGV[at], key('job', ARGV[at + 1])
  if holder(entry) == ARGV[1] and redis.call('HGET', job, 'entry') == entry then
    drop(entry)
    redis.call('HSET', job, 'entry', redis.call('XADD', stream, '*', 'job', ARGV[at + 1]))
    give_back(job)
    returned = returned + 1
  end
end
return returned
