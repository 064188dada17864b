-- Gives a job or a refresh to a worker, and takes it back. `work` is the key of its hash.

-- Gives the work to the claimer. `current` and `attempts` are the work's token and number of claims before; further
-- arguments are fields and values for its hash. Returns the number of claims so far, and whether this claim is new. If
-- its answer was lost and the script was sent again, the claim is not new: the work already has this token.
local function take(work, token, current, attempts, ...)
  if current == token then return tonumber(attempts), false end
  attempts = attempts + 1
  redis.call('HSET', work, 'state', 'running', 'token', token, 'attempts', attempts, ...)
  return attempts, true
end

-- Frees the work for other workers. The attempt does not count, because no worker died.
local function give_back(work)
  redis.call('HSET', work, 'state', 'queued')
  redis.call('HINCRBY', work, 'attempts', -1)
  redis.call('HDEL', work, 'token')
end
