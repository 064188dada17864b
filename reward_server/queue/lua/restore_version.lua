-- Publishes a version again that Redis had lost, with the files that were staged for it. Needs hold.lua and
-- renew_versions.lua.
-- ARGV: token of the staged files, run, version, digest, digest of the file that is trained further or '', base version,
-- fits (hold.lua), number, record, versions kept, their life_s, the numbers of chunks of both files.
-- Returns 'restored', 'had', 'other' if another version has the name, or 'gone' if not exactly these are staged.

local token, run, version, digest, training_digest, base, fits, number, record, num_kept, life_s, num_scoring,
  num_training = unpack(ARGV)
local scoring, training = key('restoring', token, 'scoring'), key('restoring', token, 'training')
local known_run, known = unpack(redis.call('HMGET', key('version', version), 'run', 'digest'))
if known_run and (known_run ~= run or known ~= digest) then
  redis.call('UNLINK', scoring, training)
  return 'other'
end
if redis.call('EXISTS', key('discriminators', version)) == 1 then
  redis.call('UNLINK', scoring, training)
  return 'had'
end
-- A chunk that was sent twice is there twice, and what Redis lost is missing.
if redis.call('LLEN', scoring) ~= tonumber(num_scoring) or redis.call('LLEN', training) ~= tonumber(num_training) then
  redis.call('UNLINK', scoring, training)
  return 'gone'
end
redis.call('RENAME', scoring, key('discriminators', version))
if redis.call('EXISTS', training) == 1 then redis.call('RENAME', training, key('training', version)) end
redis.call('HSET', key('version', version), 'digest', digest, 'training_digest', training_digest, 'base', base,
  'fits', fits, 'number', number, 'run', run, 'published_ms', now, 'record', record)
redis.call('HDEL', key('version', version), 'retired')

local versions, before = key('versions', run), nil
redis.call('LREM', versions, 0, version)
for _, other in ipairs(redis.call('LRANGE', versions, 0, -1)) do  -- one without a number is the base: rolled back to
  local theirs = redis.call('HGET', key('version', other), 'number')
  if not before and theirs and tonumber(theirs) < tonumber(number) then before = other end
end
if before then redis.call('LINSERT', versions, 'BEFORE', before, version)
else redis.call('RPUSH', versions, version) end
keep_latest(versions, num_kept)
renew_versions(run, life_s)
return 'restored'
