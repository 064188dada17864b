-- Makes the staged version the run's latest, and ends the refresh.
-- ARGV: id, token, version, digest, response, versions kept, their life_s, keep_s.
-- Returns 1, or 0 if the refresh is due or was taken over, or -1 if the version is not staged.

local id, token, version, digest, response, num_kept, life_s, keep_s = unpack(ARGV)
local run, published = unpack(redis.call('HMGET', key('refresh', id), 'run', 'version'))
if published == version then
  renew_versions(run, life_s)  -- the script was sent again, and the files were staged again with their short life
  return 1
end
if not mine(id, token) then return 0 end
if redis.call('EXISTS', key('discriminators', version), key('training', version)) < 2 then return -1 end
local versions = key('versions', run)
redis.call('LPUSH', versions, version)
redis.call('HSET', key('version', version), 'digest', digest, 'number',
  1 + (redis.call('HGET', key('version', redis.call('LINDEX', versions, 1) or ''), 'number') or 0))
while redis.call('LLEN', versions) > tonumber(num_kept) do
  local oldest = redis.call('RPOP', versions)
  redis.call('UNLINK', key('discriminators', oldest), key('training', oldest), key('version', oldest))
end
renew_versions(run, life_s)
redis.call('HINCRBY', key('counts'), 'refreshed', 1)
done(id, keep_s, 'version', version, 'response', response)
return 1
