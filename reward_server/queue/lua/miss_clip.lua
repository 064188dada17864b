-- Notes that a clip was scored, but is not among those that a refresh of its run can train on. Needs reservoir.lua.
-- ARGV: run, origin, the clip's name (16 hex digits and the job), life_s. Returns 1, or 0 if it was noted before.

relieve()
local run, origin, name, life_s = unpack(ARGV)
local kept = reservoir(origin, run)
note_scored(kept, name)
redis.call('EXPIRE', kept.scored, life_s)
return note_missing(origin, run, string.sub(name, 17), life_s) and 1 or 0
