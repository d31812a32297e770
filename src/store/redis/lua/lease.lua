-- KEYS[3] value, KEYS[4] floor; ARGV[6] token, ARGV[7] milliseconds, ARGV[8] unusable bytes, if any.
local GRANTED, HELD, PRESENT = 1, 2, 3
local head = open()

local floor = redis.pcall('GET', KEYS[4])
floor = type(floor) == 'string' and floor:match('^%d+$') and tonumber(floor)
if not floor or floor > head.seq then
  floor = head.seq
  redis.call('SET', KEYS[4], decimal(floor))
end

-- Whether what stands under the key belongs to a timeline that the head continues, and was not cleared.
local function counts(bytes)
  if type(bytes) ~= 'string' or #bytes < 28 or bytes:byte(1) ~= MAGIC then return false end
  local epoch, fork = bytes:sub(13, 20), head.flags:byte(2) % 2 == 1
  if epoch ~= head.epoch and not (fork and epoch == head.prev_epoch) then return false end
  return struct.unpack('>I8', bytes, 21) >= floor and bytes ~= ARGV[8]
end

local function answer(state, value)
  return { state, encode(head), floor, now_ms(), value }
end

local value = redis.pcall('GET', KEYS[3])
if counts(value) then
  local state = value:byte(3)
  if state == VALUE or state == ABSENT then return answer(PRESENT, value) end
  if state == LEASE then
    redis.call('SETRANGE', KEYS[3], 3, '\1')
    return answer(HELD)
  end
end
local lease = string.char(MAGIC, 1, LEASE, 0) .. ARGV[6] .. head.epoch .. word(head.seq)
redis.call('SET', KEYS[3], lease, 'PX', ARGV[7])
return answer(GRANTED)
