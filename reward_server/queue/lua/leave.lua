-- Forgets a worker that ends or drains. New groups are bound to the version of a worker that stays, if there is one.
-- ARGV: worker.

relieve()
redis.call('ZADD', key('workers'), 0, ARGV[1])  -- also one that still holds jobs is not live any more
forget(ARGV[1])
local staying = loaded_versions()
if #staying > 0 and not is_loaded(redis.call('GET', key('base'))) then redis.call('SET', key('base'), staying[#staying]) end
return 1
