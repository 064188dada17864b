-- The streams of jobs that have no outcome yet, and their consumer group. Every job begins in the queue. One that needs
-- a version which the worker that read it cannot judge goes on in the lane of that version (start.lua), which only
-- workers with that version read. An entry is named `id` in the queue and `id@version` in a lane.

local stream = key('queue')

local function lane(version) return version == '' and stream or key('lane', version) end

local function place(entry)
  local id, version = string.match(entry, '^([%d-]+)@?(.*)$')
  return lane(version), id
end

-- The versions of all lanes, and '' for the queue itself.
local function all_lanes()
  local versions = redis.call('SMEMBERS', key('lanes'))
  table.insert(versions, 1, '')
  return versions
end

local function name_of(id, version) return version == '' and id or id .. '@' .. version end

-- The worker that holds an entry, or nil.
local function holder(entry)
  local where, id = place(entry)
  local pending = redis.pcall('XPENDING', where, group, id, id, 1)  -- an error: the group is gone
  return pending[1] and pending[1][2]
end

-- Removes entries.
local function drop(...)
  local ids = {}
  for _, entry in ipairs({...}) do
    local where, id = place(entry)
    ids[where] = ids[where] or {}
    table.insert(ids[where], id)
  end
  for where, dropped in pairs(ids) do
    redis.call('XACK', where, group, unpack(dropped))
    redis.call('XDEL', where, unpack(dropped))
  end
end

-- The job of an entry, or nil if the stream was trimmed from outside.
local function job_of(entry)
  local where, id = place(entry)
  local found = redis.call('XRANGE', where, id, id)[1]
  return found and found[2][2]
end
