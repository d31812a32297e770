-- Shared by the steps on rooms.
-- KEYS, five for each room: state, leases, records, order, holds; ARGV[1] incarnation.
--
-- The five are there together or not at all. A part that was evicted or is something else, or a room of
-- another life of the server, makes the rest worthless: it is removed, and every pod brings its members
-- again.
local KINDS = { 'string', 'zset', 'hash', 'zset', 'zset' }
local JOINED, UPDATED, LEFT, EXPIRED = '\1', '\2', '\3', '\4'
-- Ends that are no times: of a hold that was let go, and of one whose lease has ended. Neither comes back.
local RELEASED, ENDED = 0, 1
local MAX_SWEPT = 128

-- The room whose keys begin at KEYS[first]; `seq` is nil if nobody is there.
local function room_at(first)
  local room = {
    state = KEYS[first], leases = KEYS[first + 1], records = KEYS[first + 2],
    order = KEYS[first + 3], holds = KEYS[first + 4],
  }
  local whole, there = true, false
  for i, kind in ipairs(KINDS) do
    local found = redis.call('TYPE', KEYS[first + i - 1]).ok
    whole, there = whole and found == kind, there or found ~= 'none'
  end
  if not there then return room end
  local state = whole and redis.call('GET', room.state)
  if whole and #state == 24 and state:sub(17) == ARGV[1] then
    room.epoch, room.seq = state:sub(1, 8), struct.unpack('>I8', state, 9)
    room.saved = room.seq
  else
    redis.call('UNLINK', unpack(KEYS, first, first + 4))
  end
  return room
end

-- Where its events are; empty if nobody is there.
local function position(room)
  if not room.seq then return '' end
  return room.epoch .. word(room.seq)
end

-- Numbers an event and tells those who watch.
local function emit(room, kind, member, meta)
  room.seq = room.seq + 1
  local channel, name = room.state:sub(1, -2) .. 'c', room.state:match('}p:(.*):s$')
  redis.call(PUBLISH, channel, 'P\1' .. kind .. room.epoch .. word(room.seq)
    .. struct.pack('>I2', #name) .. name .. struct.pack('>I2', #member) .. member .. meta)
end

-- Keeps the room's state; one that nobody holds goes. Gives whether it is still there.
local function save(room)
  if not room.seq then return false end
  if redis.call('EXISTS', room.leases) == 0 then
    redis.call('UNLINK', room.state, room.records, room.order, room.holds)
    room.seq = nil
    return false
  end
  if room.seq ~= room.saved then
    redis.call('SET', room.state, position(room) .. ARGV[1], 'KEEPTTL')
  end
  return true
end

-- Lets the room live for `life` milliseconds at least, if less than `enough` of a life is left.
local function extend(room, life, enough)
  local left = redis.call('PTTL', room.state)
  if left >= life * enough then return end
  for _, part in ipairs({ 'state', 'leases', 'records', 'order', 'holds' }) do
    redis.call('PEXPIRE', room[part], decimal(math.max(life, left)))
  end
end

-- The members of a hold are those of `holds` that begin with its id; no member begins with \255.
local function members_of(room, hold, limit)
  return redis.call('ZRANGEBYLEX', room.holds, '[' .. hold, '(' .. hold .. '\255', 'LIMIT', 0, limit)
end

-- Takes a member from a hold; it leaves if that was the last that had it.
local function remove(room, hold, member, kind)
  if redis.call('ZREM', room.holds, hold .. member) == 0 then return end
  local record = redis.call('HGET', room.records, member)
  local others = record and struct.unpack('>I4', record, 9) - 1 or 0
  if others > 0 then
    redis.call('HSET', room.records, member,
      record:sub(1, 8) .. struct.pack('>I4', others) .. record:sub(13))
    return
  end
  redis.call('HDEL', room.records, member)
  redis.call('ZREM', room.order, member)
  emit(room, kind, member, '')
end

-- Removes members of holds that have ended, `budget` at most. Gives what is left of the budget, and
-- whether members remain.
local function sweep(room, now, budget)
  if not room.seq then return budget, false end
  while true do
    local ended = redis.call('ZRANGEBYSCORE', room.leases, '-inf', decimal(now), 'WITHSCORES', 'LIMIT', 0, 1)
    local hold, score = ended[1], tonumber(ended[2])
    if not hold then return budget, false end
    if budget <= 0 then return 0, true end
    if score > ENDED then redis.call('ZADD', room.leases, ENDED, hold) end
    local held = members_of(room, hold, budget)
    for _, entry in ipairs(held) do
      remove(room, hold, entry:sub(9), score == RELEASED and LEFT or EXPIRED)
    end
    if #held < budget then redis.call('ZREM', room.leases, hold) end
    budget = budget - math.max(#held, 1)
  end
end

-- As most reads begin: the room at KEYS[1] without what has ended, and whether more of that remains.
local function swept()
  local room = room_at(1)
  local _, again = sweep(room, now_ms(), MAX_SWEPT)
  save(room)
  return room, again
end

-- Whether a hold stands. One that is late stands until somebody has begun to remove its members.
local function stands(room, hold)
  local score = room.seq and redis.call('ZSCORE', room.leases, hold)
  return score and tonumber(score) > ENDED
end
