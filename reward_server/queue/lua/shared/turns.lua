-- Jobs that wait for their turn, so that a small request does not wait behind the many jobs of another run.
-- A line is the queue (its name is '') or the lane of a version. At most AHEAD unread jobs of a line are in its stream.
-- All others wait in a list for each API key and run. They enter the stream in turns: the keys take turns, and within a
-- key its runs. Jobs without a run are one run together. Needs stream.lua.

local AHEAD = 4  -- enough that a worker finds work while another one is being given its jobs

-- The id of the API key that a job belongs to, or ''.
local function owner_of(id) return string.match(id, '^(.*)%-%x+$') or '' end

local function owners_of(line) return key('turns', line) end

local function runs_of(line, owner) return key('turns-of', owner, line) end

local function jobs_of(line, owner, run) return key('waiting', owner, #run, run, line) end

-- Whether jobs wait for their turn in one of the lines.
local function any_turns(lines)
  local lists = {}
  for _, line in ipairs(lines) do table.insert(lists, owners_of(line)) end
  return redis.call('EXISTS', unpack(lists)) > 0
end

-- Puts jobs of one run behind all that wait in a line. Their entry must be `waits@line`.
local function wait(line, owner, run, ids)
  if redis.call('RPUSH', jobs_of(line, owner, run), unpack(ids)) > #ids then return end
  if redis.call('RPUSH', runs_of(line, owner), run) == 1 then redis.call('RPUSH', owners_of(line), owner) end
end

-- Ends the turns of a run, and of its key, if nothing of them waits any more.
local function end_turns(line, owner, run)
  if redis.call('EXISTS', jobs_of(line, owner, run)) == 1 then return end
  redis.call('LREM', runs_of(line, owner), -1, run)
  if redis.call('EXISTS', runs_of(line, owner)) == 0 then redis.call('LREM', owners_of(line), -1, owner) end
end

-- Takes a job that has ended out of the line.
local function leave_line(line, owner, run, id)
  redis.call('LREM', jobs_of(line, owner, run), 1, id)
  end_turns(line, owner, run)
end

-- The next of a list, which goes to its end, and its share of `count`. Nil if the list is empty.
local function next_of(list, count)
  local names = redis.call('LRANGE', list, 0, count)
  if #names > 1 then redis.call('LMOVE', list, list, 'LEFT', 'RIGHT') end
  return names[1], math.max(1, math.floor(count / math.max(1, #names)))
end

local moving = {}  -- entries of jobs that are given to the worker next, by job: start.lua writes them

-- Moves up to `count` waiting jobs of one key into the line's stream. Returns how many.
local function advance_owner(line, owner, count)
  local moved = 0
  while moved < count do
    local run, share = next_of(runs_of(line, owner), count - moved)
    if not run then break end
    for _, id in ipairs(redis.call('LPOP', jobs_of(line, owner, run), share) or {}) do
      moving[id] = name_of(redis.call('XADD', lane(line), '*', 'job', id), line)
      moved = moved + 1
    end
    end_turns(line, owner, run)
  end
  return moved
end

-- Moves up to `count` waiting jobs into the line's stream. Returns how many. Call `note_moved` afterwards.
local function advance(line, count)
  local moved = 0
  while moved < count do
    local owner, share = next_of(owners_of(line), count - moved)
    if not owner then break end
    moved = moved + advance_owner(line, owner, share)
  end
  return moved
end

-- Notes the entries of those that were not given to a worker meanwhile.
local function note_moved()
  for id, entry in pairs(moving) do redis.call('HSET', key('job', id), 'entry', entry) end
  moving = {}
end

-- How many unread jobs the line's stream lacks.
local function room_in(line)
  local last = '0-0'
  for _, known in ipairs(redis.pcall('XINFO', 'GROUPS', lane(line))) do  -- an error: Redis is new or was emptied
    for at = 1, #known, 2 do
      if known[at] == 'last-delivered-id' then last = known[at + 1] end
    end
  end
  return AHEAD - #redis.call('XRANGE', lane(line), '(' .. last, '+', 'COUNT', AHEAD)
end

-- Lets waiting jobs into the line's stream while it has room. Whoever takes jobs out calls this; workers and doors
-- call it every second too (begin.lua), in case that one died before it could.
local function top_up(line)
  if redis.call('EXISTS', owners_of(line)) == 0 then return end
  advance(line, room_in(line))
  note_moved()
end

-- How many jobs can enter the line's stream at once, without a turn.
local function free_in(line)
  return redis.call('EXISTS', owners_of(line)) == 1 and 0 or room_in(line)
end

local function num_waiting(line)
  local num = 0
  for _, owner in ipairs(redis.call('LRANGE', owners_of(line), 0, -1)) do
    for _, run in ipairs(redis.call('LRANGE', runs_of(line, owner), 0, -1)) do
      num = num + redis.call('LLEN', jobs_of(line, owner, run))
    end
  end
  return num
end
