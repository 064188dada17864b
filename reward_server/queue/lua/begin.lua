-- Prepares an empty Redis. The group begins at 0, so that jobs that are already queued are not skipped.
-- Returns the time since when Redis keeps our data, and the id of the Redis server's run. A new time means that Redis
-- lost its data. A new run means that it may have lost the last second (AOF everysec).

relieve()
redis.pcall('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')  -- an error: the group exists
redis.call('HSETNX', key('counts'), 'began_ms', now)
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
return {redis.call('HGET', key('counts'), 'began_ms'), run}
