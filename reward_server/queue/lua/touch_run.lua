-- Notes a run's sign of life: its motion and its versions live on. Needs reservoir.lua, hold.lua and renew_versions.lua.
-- ARGV: run, life_s of motion, life_s of versions.

local run, life_s, version_life_s = unpack(ARGV)
for _, origin in ipairs({'real', 'rollout'}) do
  touch_motion(reservoir(origin, run), life_s)
  redis.call('EXPIRE', key('missing', origin, run), life_s)
end
renew_versions(run, version_life_s)
return 1
