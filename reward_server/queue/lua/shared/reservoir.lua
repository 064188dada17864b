-- The motion that a run keeps for its refreshes: one reservoir for each origin. What it holds is a random sample of all
-- clips that were scored, and depends on their names alone, not on the order in which they came.
--
-- A clip comes in parts. The first is enough to train on; the others hold more tracks and frame pairs of the same clip.
-- `newer` (scored since the latest refresh) and `older` order the parts by what is worth most: first parts before
-- second ones; among these the first clips of all groups before the second ones; among these by a hash of the group.
-- The last in this order is removed first. A member is the part's digit, 16 hex digits that order the clips of a
-- group, and the job.
--
-- The value of a part is its bytes, or a short reference to where they are (features.py). Only a reference has an entry
-- in `sizes`, so that it counts as what it stands for.

local RANKS, RANK = 64, 2 ^ 44  -- ranks of clips within their group, and the size of one in a score
local PART = RANKS * RANK
local MOST_SCORED = 131072  -- clips that are counted as scored at most

local removed = {}  -- the references that this script has removed: whoever called it deletes what they stand for

local function reservoir(origin, run)
  local kept = {}
  for _, kind in ipairs({'clips', 'more', 'sizes', 'newer', 'older', 'bytes', 'scored'}) do
    kept[kind] = key('kept-' .. kind, origin, run)
  end
  return kept
end

local function exact(number) return string.format('%.0f', number) end

local function score(part, rank, group) return exact(part * PART + math.min(rank, RANKS - 1) * RANK + group) end

local function at(zset, part, rank, group)
  local value = score(part, rank, group)
  return redis.call('ZRANGEBYSCORE', zset, value, value)
end

-- The rank that a clip would have within its group.
local function rank_of(zset, group, name)
  for rank = 0, RANKS - 1 do
    local there = at(zset, 0, rank, group)[1]
    if not there or string.sub(there, 2) > name then return rank end
  end
  return RANKS - 1
end

-- Gives clips of a group other ranks. `moved` holds pairs of name and rank.
local function move(zset, group, moved)
  if #moved == 0 then return end
  local members, scores, moves = {}, {}, {}
  for _, clip in ipairs(moved) do
    for part = 0, 7 do
      table.insert(members, part .. clip[1])
      table.insert(scores, score(part, clip[2], group))
    end
  end
  for place, there in ipairs(redis.call('ZMSCORE', zset, unpack(members))) do
    if there then
      table.insert(moves, scores[place])
      table.insert(moves, members[place])
    end
  end
  redis.call('ZADD', zset, unpack(moves))
end

-- Makes room for a new clip in its group: those after it move up by one rank. Returns its rank, as `rank_of`.
local function make_room(zset, group, name)
  local rank, moved = nil, {}
  for above = 0, RANKS - 2 do  -- all of the last rank stay there, however many
    local there = at(zset, 0, above, group)
    if #there == 0 then
      rank = rank or above
      break
    end
    if not rank and string.sub(there[1], 2) > name then rank = above end
    for _, member in ipairs(rank and there or {}) do table.insert(moved, {string.sub(member, 2), above + 1}) end
  end
  move(zset, group, moved)
  return rank or RANKS - 1
end

-- Where a part's value is: a hash and its field.
local function place_of(kept, member)
  local part, job = string.sub(member, 1, 1), string.sub(member, 18)
  if part == '0' then return kept.clips, job end
  return kept.more, part .. job
end

local function size_field(member) return string.sub(member, 1, 1) .. string.sub(member, 18) end

-- The bytes of a part, and whether its value is a reference to them.
local function size_of(kept, member)
  local size = redis.call('HGET', kept.sizes, size_field(member))
  if size then return tonumber(size), true end
  return redis.call('HSTRLEN', place_of(kept, member)), false
end

-- Stores a part. `size` is '' if the value is not a reference. Returns the part's bytes.
local function put(kept, member, size, value)
  local hash, field = place_of(kept, member)
  redis.call('HSET', hash, field, value)
  if size == '' then return #value end
  redis.call('HSET', kept.sizes, size_field(member), size)
  return tonumber(size)
end

local function bytes_of(kept)
  local newer, older = unpack(redis.call('HMGET', kept.bytes, 'newer', 'older'))
  return tonumber(newer or 0), tonumber(older or 0)
end

local function remove(kept, age, member)
  local hash, field = place_of(kept, member)
  local size, is_reference = size_of(kept, member)
  if is_reference then
    table.insert(removed, redis.call('HGET', hash, field))
    redis.call('HDEL', kept.sizes, size_field(member))
  end
  redis.call('HINCRBY', kept.bytes, age, 0 - size)
  redis.call('HDEL', hash, field)
  redis.call('ZREM', kept[age], member)
end

local function remove_clip(kept, age, name)
  for part = 0, 7 do
    if not redis.call('ZSCORE', kept[age], part .. name) then break end
    remove(kept, age, part .. name)
  end
end

local function count(zset) return redis.call('ZCOUNT', zset, '-inf', '(' .. exact(PART)) end

-- Removes what is worth least until the rest fits. Older clips keep `share` of the room, if newer ones need the rest.
local function trim(kept, max_clips, max_bytes, share)
  while true do
    local newer, older = count(kept.newer), count(kept.older)
    local newer_bytes, older_bytes = bytes_of(kept)
    if newer + older > max_clips then
      local age = (older > share * max_clips or newer == 0) and 'older' or 'newer'
      local last = redis.call('ZREVRANGEBYSCORE', kept[age], '(' .. exact(PART), '-inf', 'LIMIT', 0, 1)[1]
      remove_clip(kept, age, string.sub(last, 2))
    elseif newer_bytes + older_bytes > max_bytes then
      local age = (older_bytes > share * max_bytes or newer == 0) and 'older' or 'newer'
      remove(kept, age, redis.call('ZREVRANGE', kept[age], 0, 0)[1])
    else
      return
    end
  end
end

local function note_scored(kept, name)
  redis.call('ZADD', kept.scored, 'NX', now, name)
  redis.call('ZREMRANGEBYRANK', kept.scored, 0, -1 - MOST_SCORED)
end

-- Notes a job that was scored, but whose clip no refresh can train on. False if it was noted before.
local function note_missing(origin, run, job, life_s)
  local missing = key('missing', origin, run)
  if redis.call('ZADD', missing, 'NX', now, job) == 0 then return false end
  redis.call('ZREMRANGEBYRANK', missing, 0, -1025)
  redis.call('EXPIRE', missing, life_s)
  redis.call('HINCRBY', key('counts'), 'not_kept', 1)
  return true
end

local function touch_motion(kept, life_s)
  for _, kind in pairs(kept) do redis.call('EXPIRE', kind, life_s) end
end

-- The same after a clip has come in with so many parts. Not for every clip: a run sends many a second. A key that is new
-- has no life yet; the hash of first parts and `bytes` are never newer than `newer`.
local function keep_alive(kept, life_s, parts)
  if redis.call('TTL', kept.newer) < life_s * 0.99 or redis.call('TTL', kept.sizes) == -1
    or (parts > 1 and redis.call('TTL', kept.more) < life_s * 0.99) then touch_motion(kept, life_s) end
end

-- The clips that were scored until `cut_ms` become older ones.
local function age(kept, cut_ms)
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', kept.scored, '-inf', cut_ms)) do
    for part = 0, 7 do
      local member = part .. name
      local value = redis.call('ZSCORE', kept.newer, member)
      if not value then break end
      local size = size_of(kept, member)
      redis.call('ZREM', kept.newer, member)
      redis.call('ZADD', kept.older, value, member)
      redis.call('HINCRBY', kept.bytes, 'newer', 0 - size)
      redis.call('HINCRBY', kept.bytes, 'older', size)
    end
  end
  redis.call('ZREMRANGEBYSCORE', kept.scored, '-inf', cut_ms)
  local left_ms = redis.call('PTTL', kept.clips)
  if left_ms > 0 then redis.call('PEXPIRE', kept.older, left_ms) end
end
