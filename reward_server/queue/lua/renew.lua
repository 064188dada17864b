-- Renews the leases of a worker's jobs.
-- ARGV: worker, then entries. Returns the entries that the worker still holds.

local kept = {}
for at = 2, #ARGV do
  if holder(ARGV[at]) == ARGV[1] then
    local where, id = place(ARGV[at])
    redis.call('XCLAIM', where, group, ARGV[1], 0, id, 'JUSTID')
    table.insert(kept, ARGV[at])
  end
end
return kept
