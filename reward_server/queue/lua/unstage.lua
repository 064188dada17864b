-- Gives back the bytes that a dry run of admit.lua reserved for a request which has failed.
-- ARGV: the id of its first job.

for _, member in ipairs(redis.call('ZRANGE', key('staged'), 0, -1)) do
  if string.match(member, '^(.*):') == ARGV[1] then redis.call('ZREM', key('staged'), member) end
end
