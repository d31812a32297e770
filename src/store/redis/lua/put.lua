-- KEYS[3] floor, KEYS[4] value, KEYS[5..] the floors of its key as a tag; ARGV[6] nonce, ARGV[7] hashes, ARGV[8] version, ARGV[9] epoch, ARGV[10]
-- envelope, ARGV[11] milliseconds, empty if it does not expire.
local SEEN_AS_VERSIONED, UNTAGGED = 8, 0
local head = open()

-- The version of the value that stands there, if the head continues its timeline, it was not cleared, and
-- it has no tags; nil otherwise.
local function version_there()
  local bytes, floor = redis.pcall('GETRANGE', KEYS[4], 0, 71), redis.pcall('GET', KEYS[3])
  floor = type(floor) == 'string' and floor:match('^%d+$') and tonumber(floor)
  if type(bytes) ~= 'string' or #bytes < 72 or bytes:byte(1) ~= MAGIC or bytes:byte(3) ~= VALUE then return end
  local epoch, fork = bytes:sub(13, 20), head.flags:byte(2) % 2 == 1
  if epoch ~= head.epoch and not (fork and epoch == head.prev_epoch) then return end
  if not floor or floor > head.seq or struct.unpack('>I8', bytes, 21) < floor then return end
  local flags, tags = struct.unpack('>I2I2', bytes, 61)
  if math.floor(flags / SEEN_AS_VERSIONED) % 2 == 0 or tags ~= UNTAGGED then return end
  return bytes:sub(65, 72)
end

local there = version_there()
-- Who puts in an epoch has come to know of it: what stands there is not in doubt.
if not there or ARGV[9] ~= head.epoch then
  redis.call('UNLINK', KEYS[4])
elseif lower(there, ARGV[8]) then
  if ARGV[11] ~= '' then
    redis.call('SET', KEYS[4], ARGV[10], 'PX', ARGV[11])
  else
    redis.call('SET', KEYS[4], ARGV[10])
  end
end
local answer = announce(head, INVALIDATE, ARGV[6], ARGV[7])
raise(head, 5)
return answer
