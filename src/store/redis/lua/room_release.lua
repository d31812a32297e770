-- ARGV[2] hold.
local room = room_at(1)
if stands(room, ARGV[2]) then redis.call('ZADD', room.leases, RELEASED, ARGV[2]) end
local _, again = sweep(room, RELEASED, MAX_SWEPT)
save(room)
return again and 1 or 0
