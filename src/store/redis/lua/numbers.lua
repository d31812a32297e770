-- Shared by every step: numbers as bytes and as text, the time, and how to publish.

-- On a cluster, where a lane's tag has a third part, channels are those of a slot.
local PUBLISH = KEYS[1]:find('^{[^:}]*:[^:}]*:') and 'SPUBLISH' or 'PUBLISH'

local function word(number) return struct.pack('>I8', number) end

-- %.0f because tostring() turns to an exponent at 15 digits.
local function decimal(number) return string.format('%.0f', number) end

-- Whether one word is lower than another. Halves, because a Lua number holds 53 bits.
local function lower(one, other)
  local high, low = struct.unpack('>I4I4', one)
  local other_high, other_low = struct.unpack('>I4I4', other)
  return high < other_high or high == other_high and low < other_low
end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

