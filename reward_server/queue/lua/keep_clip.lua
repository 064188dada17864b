-- Keeps a clip's motion for refreshes of its run, once, as far as there is room for it. Needs reservoir.lua.
-- ARGV: run, origin, the clip's name (16 hex digits and the job), hash of its group, the largest numbers of clips and
-- bytes, share of older clips, life_s, the versions' life_s, then for each part its size ('' if its value is no
-- reference) and its value.
-- Returns the references that were removed to make room.

local run, origin, name, group, max_clips, max_bytes, share, life_s, version_life_s = unpack(ARGV, 1, 9)
local kept, job = reservoir(origin, run), string.sub(name, 17)
if redis.call('HEXISTS', kept.clips, job) == 1 then return removed end
local rank, parts, bytes, members = make_room(kept.newer, group, name), (#ARGV - 9) / 2, 0, {}
for part = 0, parts - 1 do
  local member = part .. name
  bytes = bytes + put(kept, member, ARGV[10 + 2 * part], ARGV[11 + 2 * part])
  table.insert(members, score(part, rank, group))
  table.insert(members, member)
end
redis.call('ZADD', kept.newer, unpack(members))
redis.call('HINCRBY', kept.bytes, 'newer', bytes)
redis.call('ZREM', key('missing', origin, run), job)  -- an earlier worker may have found no room
trim(kept, tonumber(max_clips), tonumber(max_bytes), tonumber(share))
keep_alive(kept, life_s, parts)
if redis.call('TTL', key('versions', run)) < version_life_s * 0.99 then  -- not for every clip: a run sends many a second
  renew_versions(run, version_life_s)
end
return removed
