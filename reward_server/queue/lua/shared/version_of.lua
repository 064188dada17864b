-- The discriminator version that scores a job: its pinned version, else the run's latest, else '', which means the
-- version that a worker has loaded. The first job of a (run, group) decides for the whole group, so that no group mixes
-- versions. The run may be ''. For a group, '' becomes the name of the base version. Returns nil if no worker has
-- reported it yet.

local chosen = {}  -- versions of the groups in this call, by the group's key
local latest = {}  -- latest versions of the runs in this call, '' if there is none

local function latest_of(run)
  latest[run] = latest[run] or run ~= '' and redis.call('LINDEX', key('versions', run), 0) or ''
  return latest[run]
end

-- The key of a group's version, or '' without a group.
local function group_key(run, group_id)
  return group_id ~= '' and key('group', #run, run, group_id) or ''
end

local function version_of(run, group_id, pin)
  local version, bound = pin ~= '' and pin or latest_of(run), group_key(run, group_id)
  if bound == '' then return version end
  version = chosen[bound] or redis.call('GET', bound) or (version ~= '' and version) or redis.call('GET', key('base'))
    or nil
  chosen[bound] = version
  return version
end
