-- How a refresh stands. ARGV: id.
-- Answers state, ms left, then its version and response, or the code and message of its error; nothing if unknown.

local state, due_ms, version, response, code, message = unpack(redis.call('HMGET', key('refresh', ARGV[1]),
  'state', 'due_ms', 'version', 'response', 'code', 'message'))
if not state then return {} end
return {state, due_ms - now, version or '', response or '', code or '', message or ''}
