-- Returns the models of the live workers. The one with the latest heartbeat is last.

local live = redis.call('ZRANGEBYSCORE', key('workers'), now, '+inf')
if #live == 0 then return {} end
return redis.call('HMGET', key('models'), unpack(live))
