-- Reads the state of a refresh. ARGV: id.
-- Returns state, ms left, version, response, and the error's code and message, where each of the last four may be ''.
-- Returns nothing if the refresh is unknown.

local state, due_ms, version, response, code, message = unpack(redis.call('HMGET', key('refresh', ARGV[1]),
  'state', 'due_ms', 'version', 'response', 'code', 'message'))
if not state then return {} end
return {state, due_ms - now, version or '', response or '', code or '', message or ''}
