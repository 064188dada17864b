-- Ends a job with its outcome.
-- ARGV: job id, kind, outcome, batch size, keep_s, dead letter or ''. Returns 1 if this outcome was the first, else 0.

local attempts = redis.call('HGET', key('job', ARGV[1]), 'attempts')
local settled = settle(ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5])
if settled == 1 and ARGV[6] ~= '' then
  redis.call('XADD', key('dead'), 'MAXLEN', '~', 1024, '*', 'job', ARGV[1], 'attempts', attempts, 'letter', ARGV[6])
  redis.call('HINCRBY', key('counts'), 'dead', 1)
end
return settled
