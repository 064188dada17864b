-- Returns pairs of version and number of jobs, for the lanes whose jobs no live worker can judge.

local rows = {}
for _, version in ipairs(redis.call('SMEMBERS', key('lanes'))) do
  local jobs = redis.call('XLEN', lane(version)) + num_waiting(version)
  if jobs > 0 and not is_loaded(version) then table.insert(rows, {version, jobs}) end
end
return rows
