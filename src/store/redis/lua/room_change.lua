-- ARGV[2] hold, ARGV[3] its TTL and ARGV[4] the room's life in milliseconds, ARGV[5] epoch to open
-- with if the hold begins (else empty); then for each change: p(ut), k(eep) or r(emove), member, meta.
local hold, begins = ARGV[2], ARGV[5] ~= ''
local room = room_at(1)
if not begins and not stands(room, hold) then return 0 end
if not room.seq then room.epoch, room.seq = ARGV[5], 0 end

local function put(member, meta, keep)
  local added = redis.call('ZADD', room.holds, 0, hold .. member)
  local record = redis.call('HGET', room.records, member)
  if not record then
    emit(room, JOINED, member, meta)
    redis.call('HSET', room.records, member, word(room.seq) .. struct.pack('>I4', 1) .. meta)
    redis.call('ZADD', room.order, 0, member)
    return
  end
  local version, holders = record:sub(1, 8), struct.unpack('>I4', record, 9) + added
  if keep or record:sub(13) == meta then
    if added == 0 then return end
    meta = record:sub(13)
  else
    emit(room, UPDATED, member, meta)
    version = word(room.seq)
  end
  redis.call('HSET', room.records, member, version .. struct.pack('>I4', holders) .. meta)
end

for i = 6, #ARGV, 3 do
  local change, member, meta = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if change == 'r' then
    remove(room, hold, member, LEFT)
  else
    put(member, meta, change == 'k')
  end
end
if #members_of(room, hold, 1) > 0 then
  redis.call('ZADD', room.leases, decimal(now_ms() + ARGV[3]), hold)
else
  redis.call('ZREM', room.leases, hold)
end
if save(room) then extend(room, tonumber(ARGV[4]), math.huge) end
return 1
