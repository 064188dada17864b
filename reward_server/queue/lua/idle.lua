-- Counts the workers that would claim a job at once: they are live and hold none, and no other job waits.
-- ARGV: the worker that asks, which does not count.

local function field(row, name)
  for at = 1, #row, 2 do
    if row[at] == name then return row[at + 1] end
  end
end

for _, known in ipairs(redis.pcall('XINFO', 'GROUPS', stream)) do  -- an error: Redis was emptied
  local unread = '(' .. field(known, 'last-delivered-id')
  if field(known, 'name') == group and redis.call('XRANGE', stream, unread, '+', 'COUNT', 1)[1] then return 0 end
end
local held = {}  -- a consumer that has read nothing yet may be unknown here
for _, version in ipairs(all_lanes()) do
  for _, consumer in ipairs(redis.pcall('XINFO', 'CONSUMERS', lane(version), group)) do
    local name = field(consumer, 'name')
    held[name] = (held[name] or 0) + field(consumer, 'pending')
  end
end
local idle = 0
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', key('workers'), now, '+inf')) do
  if worker ~= ARGV[1] and (held[worker] or 0) == 0 then idle = idle + 1 end
end
return idle
