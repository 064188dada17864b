-- Renews the lease of a refresh.
-- ARGV: id, token, lease_ms. Returns 1, or 0 if it was taken over, is done or due.

local id, token, lease_ms = unpack(ARGV)
if not mine(id, token) then return 0 end
redis.call('ZADD', key('refreshes'), now + lease_ms, id)
return 1
