-- Takes clips out of what a run keeps, because bytes of theirs are gone, and notes them as missing.
-- Needs reservoir.lua.
-- ARGV: run, origin, life_s, the fewest clips of an origin in an anchor set, then the parts that are gone, as members of
-- the reservoir. Those that were removed since they were read are nobody's loss.
-- Returns the jobs of the lost clips, the references that were removed with them, and 1 if the run has lost its
-- anchor set: one of fewer clips is none, and the run can get a new one.

relieve()
local run, origin, life_s, anchor_min = unpack(ARGV, 1, 4)
local kept, anchor, lost, from_set = reservoir(origin, run), key('anchor', origin, run), {}, false
for at = 5, #ARGV do
  local member, name = ARGV[at], string.sub(ARGV[at], 2)
  local was_anchor, was_kept = redis.call('HDEL', anchor, name) == 1, false
  for _, age in ipairs({'newer', 'older'}) do
    if redis.call('ZSCORE', kept[age], member) then
      remove_clip(kept, age, name)
      was_kept = true
    end
  end
  if was_anchor or was_kept then
    note_missing(origin, run, string.sub(name, 17), life_s)
    table.insert(lost, string.sub(name, 17))
  end
  from_set = from_set or was_anchor
end
local set_lost = from_set and redis.call('HLEN', anchor) < tonumber(anchor_min)
if set_lost then  -- the sweep deletes its other files
  redis.call('UNLINK', key('anchor', 'real', run), key('anchor', 'rollout', run))
end
return {lost, removed, set_lost and 1 or 0}
