-- Ends a refresh without a version.
-- ARGV: id, token, code, message, keep_s. Returns 1, or 0 if it was taken over, is done or due.

local id, token, code, message, keep_s = unpack(ARGV)
if not mine(id, token) then return 0 end
redis.call('HINCRBY', key('counts'), 'refresh_failed', 1)
redis.call('HINCRBY', key('counts'), 'refresh_failed:' .. code, 1)
done(id, keep_s, 'code', code, 'message', message)
return 1
