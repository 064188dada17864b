-- Answers the models of the workers that live, latest heartbeat last.

local live = redis.call('ZRANGEBYSCORE', key('workers'), now, '+inf')
if #live == 0 then return {} end
return redis.call('HMGET', key('models'), unpack(live))
