-- The discriminator version that judges a job: its pin, else the run's latest version, else '', which means whatever
-- version a worker has loaded. The first job of a (run, group) chooses for the whole group, so that no group can mix
-- versions. For a group '' becomes the name of the base version. Answers nil if no worker has ever named its version.

local chosen = {}  -- the key of each group that chose in this script, and its version

local function version_of(run, group_id, pin)
  local latest = run ~= '' and redis.call('LINDEX', key('versions', run), 0)
  local version = pin ~= '' and pin or latest or ''
  if run == '' or group_id == '' then return version end
  local bound = key('group', #run, run, group_id)
  version = chosen[bound] or redis.call('GET', bound) or (version ~= '' and version) or redis.call('GET', key('base'))
    or nil
  chosen[bound] = version
  return version
end
