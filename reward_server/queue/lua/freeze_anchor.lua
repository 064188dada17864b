-- Moves clips out of a run's reservoirs, to its anchor set. Only their first parts are kept. Needs reservoir.lua.
-- ARGV: run, life_s, then the clips' names. Nothing changes if the run has an anchor set.
-- Returns the references that were removed: those of the clips' other parts.

local run, life_s = ARGV[1], ARGV[2]
if redis.call('EXISTS', key('anchor', 'real', run), key('anchor', 'rollout', run)) > 0 then return removed end
local moved, rest = {}, {}
for _, origin in ipairs({'real', 'rollout'}) do
  local kept, anchor = reservoir(origin, run), key('anchor', origin, run)
  for at = 3, #ARGV do
    local value = redis.call('HGET', kept.clips, string.sub(ARGV[at], 17))
    if value then
      redis.call('HSET', anchor, ARGV[at], value)
      moved[value] = true
      for _, age in ipairs({'newer', 'older'}) do remove_clip(kept, age, ARGV[at]) end
    end
  end
  redis.call('EXPIRE', anchor, life_s)
end
for _, reference in ipairs(removed) do
  if not moved[reference] then table.insert(rest, reference) end
end
return rest
