-- Returns up to 64 pairs of job id and context of overdue jobs, oldest first.

local rows = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('due'), '-inf', now, 'LIMIT', 0, 64)) do
  local context = redis.call('HGET', key('job', id), 'context')
  if context then table.insert(rows, {id, context}) else redis.call('ZREM', key('due'), id) end
end
return rows
