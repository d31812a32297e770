-- ARGV[2] member. Gives {1} to be asked again, or {0, record if it is there}.
local room, again = swept()
if again then return { 1 } end
return { 0, room.seq and redis.call('HGET', room.records, ARGV[2]) or nil }
