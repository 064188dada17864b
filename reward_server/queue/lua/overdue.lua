-- Returns up to 64 pairs of job id and context of overdue jobs, oldest first.

local rows = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('due'), '-inf', now, 'LIMIT', 0, 64)) do
  local state, context = unpack(redis.call('HMGET', key('job', id), 'state', 'context'))
  if context and state ~= 'done' then
    table.insert(rows, {id, context})
  else
    redis.call('ZREM', key('due'), id)
    redis.call('ZREM', key('ages'), id)
  end
end
return rows
