-- Removes dead letters and their clips. ARGV: entry and job id of each. Returns how many there were.

local dropped = 0
for at = 1, #ARGV, 2 do
  dropped = dropped + redis.call('XDEL', key('dead'), ARGV[at])
  redis.call('UNLINK', key('dead-payload', ARGV[at + 1]))
end
return dropped
