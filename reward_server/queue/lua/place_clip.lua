-- Notes that a clip was scored, and says how many of its parts are to be kept. Needs reservoir.lua.
-- ARGV: run, origin, the clip's name (16 hex digits and the job), hash of its group, the largest numbers of clips and
-- bytes, share of older clips, life_s, then the size of each part.
-- Returns the number of parts, from the first on; -1 if the first alone is too large.

local run, origin, name, group, max_clips, max_bytes, share, life_s = unpack(ARGV)
local kept = reservoir(origin, run)
note_scored(kept, name)
redis.call('EXPIRE', kept.scored, life_s)
max_clips, max_bytes = tonumber(max_clips), tonumber(max_bytes)
if tonumber(ARGV[9]) > max_bytes then return -1 end
if redis.call('HEXISTS', kept.clips, string.sub(name, 17)) == 1 then return 0 end

local newer_bytes, older_bytes = bytes_of(kept)
local room = max_bytes - newer_bytes - math.min(older_bytes, share * max_bytes)
local full = count(kept.newer) + math.min(count(kept.older), share * max_clips) >= max_clips
local rank = rank_of(kept.newer, group, name)
local last = redis.call('ZREVRANGE', kept.newer, 0, 0, 'WITHSCORES')
local last_clip = redis.call('ZREVRANGEBYSCORE', kept.newer, '(' .. exact(PART), '-inf', 'WITHSCORES', 'LIMIT', 0, 1)
local wanted = 0  -- a part with the value of the last one takes its place: it is of the same group, and moves up
for part = 0, #ARGV - 9 do
  local size, value = tonumber(ARGV[9 + part]), tonumber(score(part, rank, group))
  if part == 0 and full and not (last_clip[2] and value <= tonumber(last_clip[2])) then break end
  if size <= room then room = room - size
  elseif not (last[2] and value <= tonumber(last[2])) then break end
  wanted = part + 1
end
return wanted
