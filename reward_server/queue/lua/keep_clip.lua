-- Keeps a clip's motion for refreshes of its run, once. The oldest clips are removed to make room.
-- ARGV: run, origin, job, packed motion, the largest numbers of clips and bytes, life_s, the versions' life_s.
-- Returns 1, or 0 if the clip was already kept.

local run, origin, job, data, max_clips, max_bytes, life_s, version_life_s = unpack(ARGV)
local clips, order, size = key('clips', origin, run), key('clip-order', origin, run), key('clip-bytes', origin, run)
if redis.call('HEXISTS', clips, job) == 1 then return 0 end
redis.call('HSET', clips, job, data)
redis.call('RPUSH', order, job)
local bytes = redis.call('INCRBY', size, #data)
while redis.call('LLEN', order) > tonumber(max_clips) or bytes > tonumber(max_bytes) do
  local oldest = redis.call('LPOP', order)
  bytes = redis.call('DECRBY', size, redis.call('HSTRLEN', clips, oldest))
  redis.call('HDEL', clips, oldest)
end
for _, kept in ipairs({clips, order, size}) do redis.call('EXPIRE', kept, life_s) end
renew_versions(run, version_life_s)
return 1
