-- Starts the jobs whose entries a worker has just read.
-- ARGV: token, then entry and job id of each entry. Returns the rows of `start`.

relieve()
local rows = {}
for at = 2, #ARGV, 2 do
  local row = start(ARGV[at], ARGV[at + 1], ARGV[1])
  if row then table.insert(rows, row) end
end
return rows
