-- Moves clips out of a run's reservoirs, to its anchor set. Only their first parts are kept. Needs reservoir.lua.
-- ARGV: run, life_s, then the clips' names. Returns 1, or 0 if the run has an anchor set.

local run, life_s = ARGV[1], ARGV[2]
if redis.call('EXISTS', key('anchor', 'real', run), key('anchor', 'rollout', run)) > 0 then return 0 end
for _, origin in ipairs({'real', 'rollout'}) do
  local kept, anchor = reservoir(origin, run), key('anchor', origin, run)
  for at = 3, #ARGV do
    local data = redis.call('HGET', kept.clips, string.sub(ARGV[at], 17))
    if data then
      redis.call('HSET', anchor, ARGV[at], data)
      for _, age in ipairs({'newer', 'older'}) do remove_clip(kept, age, ARGV[at]) end
    end
  end
  redis.call('EXPIRE', anchor, life_s)
end
return 1
