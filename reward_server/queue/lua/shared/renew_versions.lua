-- Extends the life of all versions of a run to `life_s` from now.

local function renew_versions(run, life_s)
  for _, version in ipairs(redis.call('LRANGE', key('versions', run), 0, -1)) do
    for _, kind in ipairs({'discriminators', 'training', 'version'}) do
      redis.call('EXPIRE', key(kind, version), life_s)
    end
  end
  redis.call('EXPIRE', key('versions', run), life_s)
end
