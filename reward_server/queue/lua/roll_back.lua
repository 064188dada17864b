-- Makes an earlier version of a run, or the base version that it began with, the run's latest again. The later ones
-- stay in the list: they can be pinned, and rolled forward to.
-- ARGV: run, version. Returns {'done', the latest before}, or the reason for a refusal: {'none'}, {'running'}, or
-- {'unknown', the versions that could be chosen}.

local run, version = unpack(ARGV)
local versions, known, choices = key('versions', run), false, {}
local names = redis.call('LRANGE', versions, 0, -1)
if #names == 0 then return {'none'} end
if redis.call('EXISTS', key('refreshing', run)) == 1 then return {'running'} end
for _, name in ipairs(names) do
  for _, choice in ipairs({name, redis.call('HGET', key('version', name), 'base')}) do
    known = known or choice == version
    choices[choice] = true
  end
end
if not known or version == '' then
  local answer = {'unknown'}
  for choice in pairs(choices) do table.insert(answer, choice) end
  return answer
end
if names[1] ~= version then
  redis.call('LREM', versions, 0, version)
  redis.call('LPUSH', versions, version)
end
return {'done', names[1]}
