-- KEYS[3] floor, KEYS[4] markers of the lane, KEYS[5..] values; from ARGV[6] on, four for each value: token,
-- milliseconds, the unusable bytes, empty if there are none, and the hash. Answers head, floor, time, then
-- for each value what it is: granted, held, guarded, or the bytes that are present; and the version that the
-- source has of it at least, empty if that is not known.
local GRANTED, HELD, GUARDED = 1, 2, 3
local head = open()

local floor = redis.pcall('GET', KEYS[3])
floor = type(floor) == 'string' and floor:match('^%d+$') and tonumber(floor)
if not floor or floor > head.seq then
  floor = head.seq
  redis.call('SET', KEYS[3], decimal(floor))
end

-- Whether what stands under the key belongs to a timeline that the head continues, and was not cleared.
local function counts(bytes, unusable)
  if type(bytes) ~= 'string' or #bytes < 28 or bytes:byte(1) ~= MAGIC then return false end
  local epoch, fork = bytes:sub(13, 20), head.flags:byte(2) % 2 == 1
  if epoch ~= head.epoch and not (fork and epoch == head.prev_epoch) then return false end
  return struct.unpack('>I8', bytes, 21) >= floor and bytes ~= unusable
end

local now, fields = now_ms(), {}
for at = 9, #ARGV, 4 do
  fields[#fields + 1] = ARGV[at]
  fields[#fields + 1] = minimum_of(ARGV[at])
end
-- Whatever else stands there is no list, and no marker either.
local marked = redis.pcall('HMGET', KEYS[4], unpack(fields))

local function take(key, token, ms, unusable, markers)
  if markers and any_stands(markers, now) then return GUARDED end
  local value = redis.pcall('GET', key)
  if counts(value, unusable) then
    local state = value:byte(3)
    if state == VALUE or state == ABSENT then return value end
    if state == LEASE then
      redis.call('SETRANGE', key, 3, '\1')
      return HELD
    end
  end
  local lease = string.char(MAGIC, 1, LEASE, 0) .. token .. head.epoch .. word(head.seq)
  redis.call('SET', key, lease, 'PX', ms)
  return GRANTED
end

local answers = { encode(head), floor, now }
for i = 5, #KEYS do
  local at, pair = 4 * i - 14, 2 * (i - 4)
  local minimum = marked[pair]
  answers[#answers + 1] = take(KEYS[i], ARGV[at], ARGV[at + 1], ARGV[at + 2], marked[pair - 1])
  answers[#answers + 1] = minimum and any_stands(minimum, now) and minimum:sub(1, 8) or ''
end
return answers
