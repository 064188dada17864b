-- Prepares an empty Redis. The groups begin at 0, so that jobs that are already queued are not skipped. Also lets
-- waiting jobs into the streams, in case the worker that should have done so has died.
-- ARGV: nothing, or the version that the calling worker has loaded.
-- Returns the time since when Redis keeps our data, and the id of the Redis server's run. A new time means that Redis
-- lost its data. A new run means that it may have lost the last second (AOF everysec).

relieve()
redis.pcall('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')  -- an error: the group exists
top_up('')
if ARGV[1] and ARGV[1] ~= '' then
  open_lane(ARGV[1])
  top_up(ARGV[1])
end
redis.call('HSETNX', key('counts'), 'began_ms', now)
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
return {redis.call('HGET', key('counts'), 'began_ms'), run}
