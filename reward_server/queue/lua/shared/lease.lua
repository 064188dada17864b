-- How a job and a refresh pass from hand to hand. `work` is the key of either one's hash.

-- Makes the work the claimer's, and answers the number of its claims and whether this claim is a new one. It is not new
-- if the answer to this very claim was lost and the script was sent again: then the work has this token already.
local function take(work, token)
  local current, attempts = unpack(redis.call('HMGET', work, 'token', 'attempts'))
  if current == token then return tonumber(attempts), false end
  attempts = redis.call('HINCRBY', work, 'attempts', 1)
  redis.call('HSET', work, 'state', 'running', 'token', token)
  return attempts, true
end

-- Makes the work free for others. The attempt does not count, because no worker died.
local function give_back(work)
  redis.call('HSET', work, 'state', 'queued')
  redis.call('HINCRBY', work, 'attempts', -1)
  redis.call('HDEL', work, 'token')
end
