-- Makes the staged version the run's latest, and ends the refresh.
-- ARGV: id, token, version, digest, its base version, its fits (hold.lua), response, versions kept, their life_s, keep_s,
-- the time until which it knows the run's clips, the digest of the file that is trained further, and its number.
-- Returns 1, or 0 if the refresh is due or was taken over, or -1 if the version is not staged.

local id, token, version, digest, base, fits, response, num_kept, life_s, keep_s, cut_ms,
  training_digest, number = unpack(ARGV)
local run, published = unpack(redis.call('HMGET', key('refresh', id), 'run', 'version'))
if published == version then
  renew_versions(run, life_s)  -- the script was sent again, and the files were staged again with their short life
  return 1
end
if not mine(id, token) then return 0 end
if redis.call('EXISTS', key('discriminators', version), key('training', version)) < 2 then return -1 end
local versions = key('versions', run)
redis.call('LREM', versions, 0, version)  -- the same clips and seed after going back give the same version
redis.call('LPUSH', versions, version)
redis.call('HSET', key('version', version), 'digest', digest, 'training_digest', training_digest, 'base', base,
  'fits', fits, 'number', number, 'run', run, 'published_ms', now, 'record', response)
redis.call('HDEL', key('version', version), 'retired')
keep_latest(versions, num_kept)
renew_versions(run, life_s)
for _, origin in ipairs({'real', 'rollout'}) do age(reservoir(origin, run), cut_ms) end
redis.call('HINCRBY', key('counts'), 'refreshed', 1)
redis.call('SET', key('last-refresh'), version, 'EX', life_s)
done(id, keep_s, 'version', version, 'response', response)
return 1
