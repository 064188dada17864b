-- Notes that a clip was scored, but is not among those that a refresh of its run can train on. Needs reservoir.lua.
-- ARGV: run, origin, the clip's name (16 hex digits and the job), life_s. Returns 1, or 0 if it was noted before.

relieve()
local run, origin, name, life_s = unpack(ARGV)
local missing, kept = key('missing', origin, run), reservoir(origin, run)
note_scored(kept, name)
redis.call('EXPIRE', kept.scored, life_s)
if redis.call('ZADD', missing, 'NX', now, string.sub(name, 17)) == 0 then return 0 end
redis.call('ZREMRANGEBYRANK', missing, 0, -1025)
redis.call('EXPIRE', missing, life_s)
redis.call('HINCRBY', key('counts'), 'not_kept', 1)
return 1
