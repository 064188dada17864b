-- Records a worker's heartbeat. Also forgets the workers whose last heartbeat has expired.
-- ARGV: worker, model, life_ms, the model's version.

relieve()
redis.call('ZADD', key('workers'), now + ARGV[3], ARGV[1])
redis.call('HSET', key('models'), ARGV[1], ARGV[2])
redis.call('SET', key('base'), ARGV[4])
for _, silent in ipairs(redis.call('ZRANGEBYSCORE', key('workers'), '-inf', now)) do forget(silent) end
return 1
