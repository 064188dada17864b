-- Keeps a clip's motion for refreshes of its run, once, as far as there is room for it. Needs reservoir.lua.
-- ARGV: run, origin, the clip's name (16 hex digits and the job), hash of its group, the largest numbers of clips and
-- bytes, share of older clips, life_s, the versions' life_s, then its parts.
-- Returns 1, or 0 if the clip was already kept.

local run, origin, name, group, max_clips, max_bytes, share, life_s, version_life_s = unpack(ARGV, 1, 9)
local kept, job = reservoir(origin, run), string.sub(name, 17)
if redis.call('HEXISTS', kept.clips, job) == 1 then return 0 end
local rank, bytes, members = make_room(kept.newer, group, name), 0, {}
for part = 0, #ARGV - 10 do
  local member, data = part .. name, ARGV[10 + part]
  local hash, field = place_of(kept, member)
  redis.call('HSET', hash, field, data)
  table.insert(members, score(part, rank, group))
  table.insert(members, member)
  bytes = bytes + #data
end
redis.call('ZADD', kept.newer, unpack(members))
redis.call('HINCRBY', kept.bytes, 'newer', bytes)
redis.call('ZREM', key('missing', origin, run), job)  -- an earlier worker may have found no room
trim(kept, tonumber(max_clips), tonumber(max_bytes), tonumber(share))
keep_alive(kept, life_s, #ARGV - 9)
if redis.call('TTL', key('versions', run)) < version_life_s * 0.99 then  -- not for every clip: a run sends many a second
  renew_versions(run, version_life_s)
end
return 1
