-- Shared by every step: bytes on the wire and under the keys.
-- KEYS[1] head of the lane; ARGV[1] lane (2 bytes), ARGV[2] channel.
-- Epochs, nonces, tokens and hashes are opaque bytes here and never numbers: a Lua number holds 53 bits.
local INVALIDATE, CLEAR, FORK, FENCE, FILLED, BATCH = '\1', '\2', '\3', '\4', '\5', '\6'
local NONE = string.rep('\0', 8)
local MAGIC, VALUE, ABSENT, LEASE = 215, 1, 2, 3

-- A hint about `lane`. What follows its hashes is of its kind.
local function hint(lane, kind, epoch, seq, prev, nonce, ms, hashes)
  return '\1' .. kind .. lane .. epoch .. seq .. prev .. nonce
    .. struct.pack('>I6I2', ms, #hashes / 8) .. hashes
end

local function publish(message) redis.call(PUBLISH, ARGV[2], message) end

-- The stored head, or nil if there is none or something else stands in its place.
local function head_bytes()
  local bytes = redis.pcall('GET', KEYS[1])
  if type(bytes) == 'string' and #bytes == 56 then return bytes end
end

-- The state of what stands under `key`, its token, and its fourth byte; nil if it is nothing of ours.
local function front_of(key)
  local bytes = redis.pcall('GETRANGE', key, 0, 27)
  if type(bytes) ~= 'string' or #bytes < 28 or bytes:byte(1) ~= MAGIC then return nil end
  return bytes:byte(3), bytes:sub(5, 12), bytes:byte(4)
end

-- The token of the lease under `key` and whether somebody waits for it; nil if there is no lease.
local function lease_of(key)
  local state, token, waited = front_of(key)
  if state == LEASE then return token, waited == 1 end
end

-- The token of the value under `key`; nil if there is none.
local function value_of(key)
  local state, token = front_of(key)
  if state == VALUE or state == ABSENT then return token end
end

-- Tells the waiters for `hash` to look again, unless the channel is empty.
local function wake(head, hash)
  if ARGV[2] == '' then return end
  publish(hint(ARGV[1], FILLED, head:sub(1, 8), head:sub(9, 16), NONE, NONE, now_ms(), hash))
end
