-- Gives a refresh back, so that another worker can claim it at once.
-- ARGV: id, token. Returns 1, or 0 if it was taken over, is done or due.

local id, token = unpack(ARGV)
if not mine(id, token) then return 0 end
give_back(key('refresh', id))
redis.call('ZADD', key('refreshes'), 0, id)
tell(id)
return 1
