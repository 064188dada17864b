-- Extends the life of all versions of a run, and of its anchor set, to `life_s` from now. Needs hold.lua.

local function renew_versions(run, life_s)
  for _, version in ipairs(redis.call('LRANGE', key('versions', run), 0, -1)) do
    extend(version, now + life_s * 1000)
    redis.call('EXPIRE', key('training', version), life_s)
  end
  redis.call('EXPIRE', key('versions', run), life_s)
  for _, origin in ipairs({'real', 'rollout'}) do redis.call('EXPIRE', key('anchor', origin, run), life_s) end
end
