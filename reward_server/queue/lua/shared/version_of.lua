-- The discriminator version that scores a job: its pinned version, else the run's latest, else '', which means the
-- version that a worker has loaded. The first job of a (run, group) decides for the whole group, so that no group mixes
-- versions. For a group, '' becomes the name of the base version. Returns nil if no worker has reported it yet.

local chosen = {}  -- versions of the groups in this call, by the group's key

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
