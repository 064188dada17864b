-- Starts the jobs whose entries a worker has just read, and further ones in turns, up to a number of jobs.
-- ARGV: worker, token, the number, loaded version, its fits, then entry and job id of each entry.
-- Returns the rows of `start`.

relieve()
local ROUNDS = 4  -- at most: many jobs that others must judge do not keep Redis busy
local worker, token, wanted, loaded, fits = unpack(ARGV)
local lines = loaded == '' and {''} or {loaded, ''}
local rows, again = {}, false

local function begin(entry, id)
  local row, is_new = start(entry, id, token, loaded, fits)
  if row then
    table.insert(rows, row)
    again = again or not is_new
  end
end

local function read(line)
  local found = redis.pcall('XREADGROUP', 'GROUP', group, worker, 'COUNT', wanted - #rows, 'STREAMS', lane(line), '>')
  for _, entry in ipairs(found and found[1] and found[1][2] or {}) do  -- an error: the group is gone
    begin(name_of(entry[1], line), entry[2][2])
  end
end

for at = 6, #ARGV, 2 do begin(ARGV[at], ARGV[at + 1]) end
if again then  -- the answer to this claim was lost: give it again, with the jobs that it had in turns
  rows = {}
  for _, line in ipairs(lines) do
    for _, pending in ipairs(redis.pcall('XPENDING', lane(line), group, '-', '+', 1024, worker)) do
      local entry = name_of(pending[1], line)
      local id = job_of(entry)
      if id and redis.call('HGET', key('job', id), 'token') == token then begin(entry, id) end
    end
  end
  return rows
end
if not any_turns(lines) then return rows end  -- what has come meanwhile is found by the next claim
for _ = 1, ROUNDS do
  local moved = 0
  for _, line in ipairs(lines) do
    if #rows < tonumber(wanted) then
      read(line)  -- what others have left comes first
      local more = #rows < tonumber(wanted) and advance(line, wanted - #rows) or 0
      if more > 0 then
        read(line)
        note_moved()
      end
      moved = moved + more
    end
  end
  if moved == 0 then break end
end
for _, line in ipairs(lines) do top_up(line) end
return rows
