-- What is bound to a run's version keeps it, also after newer versions have replaced it. `bound:<version>` holds the
-- unfinished jobs, and the groups whose results can be fetched, by the time until which they keep it at the longest.

local HELD = {'discriminators', 'version', 'bound'}  -- the keys that a held version needs; it is not trained further

-- For one of a run's versions, the preprocessing digest of the workers that can load it, or '' if any worker may try.
-- Otherwise nil: workers bring such a version themselves.
local function fits_of(version)
  local digest, fits = unpack(redis.call('HMGET', key('version', version), 'digest', 'fits'))
  return digest and (fits or '') or nil
end

-- Makes the version live until `until_ms` at least.
local function extend(version, until_ms)
  for _, kind in ipairs(HELD) do
    if redis.call('PTTL', key(kind, version)) < until_ms - now then
      redis.call('PEXPIREAT', key(kind, version), until_ms)
    end
  end
end

-- Makes a version that is no longer among its run's latest live as long as something is bound to it.
local function retire(version)
  redis.call('ZREMRANGEBYSCORE', key('bound', version), '-inf', now)
  local until_ms = redis.call('ZREVRANGE', key('bound', version), 0, 0, 'WITHSCORES')[2]
  for _, kind in ipairs(HELD) do
    if until_ms then redis.call('PEXPIREAT', key(kind, version), until_ms)
    else redis.call('UNLINK', key(kind, version)) end
  end
end

-- Shortens a run's list of versions. Those that leave it are not trained further.
local function keep_latest(versions, num_kept)
  while redis.call('LLEN', versions) > tonumber(num_kept) do
    local oldest = redis.call('RPOP', versions)
    redis.call('UNLINK', key('training', oldest))
    redis.call('HSET', key('version', oldest), 'retired', 1)
    retire(oldest)
  end
end

-- Ends what a job holds. Its group, '' or the name of a key, holds the version until `until_ms` instead.
local function release(version, id, bound_group, until_ms)
  redis.call('ZREM', key('bound', version), id)
  if bound_group ~= '' then redis.call('ZADD', key('bound', version), until_ms, bound_group) end
  if redis.call('HGET', key('version', version), 'retired') then retire(version) end
end
