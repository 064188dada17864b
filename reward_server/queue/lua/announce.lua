-- Records a worker's heartbeat. Also forgets the workers whose last heartbeat has expired, and the lanes that ended.
-- ARGV: worker, model, life_ms, the model's version.

relieve()
local worker, model, life_ms, version = unpack(ARGV)
redis.call('ZADD', key('workers'), now + life_ms, worker)
redis.call('HSET', key('models'), worker, model)
redis.call('HSET', key('loaded'), worker, version)
redis.call('SET', key('base'), version)
open_lane(version)
for _, silent in ipairs(redis.call('ZRANGEBYSCORE', key('workers'), '-inf', now)) do forget(silent) end
for _, known in ipairs(redis.call('SMEMBERS', key('lanes'))) do
  if redis.call('EXISTS', lane(known)) == 0 then redis.call('SREM', key('lanes'), known) end
end
return 1
