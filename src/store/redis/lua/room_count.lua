-- Gives {1} to be asked again, or {0, number}.
local room, again = swept()
if again then return { 1 } end
return { 0, room.seq and redis.call('HLEN', room.records) or 0 }
