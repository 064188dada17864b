-- Reads what the metrics show beside the counters.
-- Returns the age in ms of the oldest unfinished job or -1, the number of workers that fell silent while they held jobs,
-- and of the version that was published last its record and the time, or '' and 0.

local oldest = redis.call('ZRANGE', key('ages'), 0, 0, 'WITHSCORES')[2]
local silent = redis.call('ZCOUNT', key('workers'), '(0', '(' .. now)  -- a worker that left has the score 0
local version = redis.call('GET', key('last-refresh'))
local record, published_ms
if version then record, published_ms = unpack(redis.call('HMGET', key('version', version), 'record', 'published_ms')) end
return {oldest and now - oldest or -1, silent, record or '', record and tonumber(published_ms) or 0}
