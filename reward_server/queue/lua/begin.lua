-- Makes an empty Redis ready. The group begins at 0, so that jobs that are queued already are not skipped.
-- Answers since when Redis keeps our data, and which run of the Redis server this is. Another time means that Redis
-- lost its data meanwhile. Another run means that it may have lost the last second (AOF everysec).

relieve()
redis.pcall('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')  -- an error: it exists
redis.call('HSETNX', key('counts'), 'began_ms', now)
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
return {redis.call('HGET', key('counts'), 'began_ms'), run}
