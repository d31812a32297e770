-- For each room ARGV[2..]: hold (empty if there is none), its TTL and the room's life in milliseconds.
local now, budget, answers = now_ms(), MAX_SWEPT, {}
for i = 0, #KEYS / 5 - 1 do
  local hold, ttl, life = ARGV[3 * i + 2], ARGV[3 * i + 3], tonumber(ARGV[3 * i + 4])
  local room = room_at(5 * i + 1)
  local stood, again = hold ~= '' and stands(room, hold), false
  if stood then redis.call('ZADD', room.leases, decimal(now + ttl), hold) end
  budget, again = sweep(room, now, budget)
  if save(room) and stood then extend(room, life, 0.9) end
  answers[i + 1] = { stood and 1 or 0, again and 1 or 0, position(room) }
end
return answers
