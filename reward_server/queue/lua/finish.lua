-- Ends jobs with their outcomes.
-- ARGV: keep_s, then job id, kind, outcome, brief outcome and batch size of each. Returns 1 for each whose outcome was the
-- first, else 0.

local asked = {}
for at = 2, #ARGV, 5 do
  table.insert(asked, {id = ARGV[at], kind = ARGV[at + 1], outcome = ARGV[at + 2], brief = ARGV[at + 3],
    batch = ARGV[at + 4]})
end
return settle(asked, ARGV[1])
