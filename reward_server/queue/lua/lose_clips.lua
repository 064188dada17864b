-- Takes clips out of what a run keeps, because bytes of theirs are gone, and notes them as missing.
-- Needs reservoir.lua.
-- ARGV: run, origin, life_s, then the parts that are gone, as members of the reservoir. Those that were removed since
-- they were read are nobody's loss.
-- Returns the jobs of the lost clips, and the references that were removed with them.

relieve()
local run, origin, life_s = unpack(ARGV, 1, 3)
local kept, anchor, lost = reservoir(origin, run), key('anchor', origin, run), {}
for at = 4, #ARGV do
  local member, name = ARGV[at], string.sub(ARGV[at], 2)
  local was_anchor, was_kept = redis.call('HDEL', anchor, name) == 1, false
  for _, age in ipairs({'newer', 'older'}) do
    if redis.call('ZSCORE', kept[age], member) then
      remove_clip(kept, age, name)
      was_kept = true
    end
  end
  if was_anchor and redis.call('EXISTS', anchor) == 0 then  -- clips of one origin judge nothing: the run gets a new set
    redis.call('UNLINK', key('anchor', 'real', run), key('anchor', 'rollout', run))
  end
  if was_anchor or was_kept then
    note_missing(origin, run, string.sub(name, 17), life_s)
    table.insert(lost, string.sub(name, 17))
  end
end
return {lost, removed}
