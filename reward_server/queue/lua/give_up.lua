-- Ends a job with a dead letter, which keeps what is needed to replay it.
-- ARGV: job id, kind, outcome, keep_s, dead letter, life_s of letters, the largest number of their clips' bytes.
-- Returns 1 if this outcome was the first, else 0.

local id, kind, outcome, keep_s, letter, life_s, max_bytes = unpack(ARGV)
local run, attempts, media, context = unpack(redis.call('HMGET', key('job', id), 'run', 'attempts', 'media', 'context'))
relieve()
if redis.call('EXISTS', key('payload', id)) == 1 then redis.call('RENAME', key('payload', id), key('dead-payload', id)) end
if settle({{id = id, kind = kind, outcome = outcome, brief = '', batch = 0}}, keep_s)[1] == 0 then return 0 end
redis.call('XADD', key('dead'), 'MAXLEN', 1024, '*', 'job', id, 'run', run, 'attempts', attempts, 'letter', letter,
  'media', media, 'context', context)
redis.call('XTRIM', key('dead'), 'MINID', now - life_s * 1000)
redis.call('EXPIRE', key('dead'), life_s)
redis.call('EXPIRE', key('dead-payload', id), life_s)
redis.call('HINCRBY', key('counts'), 'dead', 1)
local bytes = 0
for _, entry in ipairs(redis.call('XREVRANGE', key('dead'), '+', '-')) do  -- the clips of the oldest letters go first
  local payload = key('dead-payload', entry[2][2])
  bytes = bytes + redis.call('STRLEN', payload)
  if bytes > tonumber(max_bytes) then redis.call('UNLINK', payload) end
end
return 1
