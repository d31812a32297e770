-- KEYS[3] markers of the lane, KEYS[4..] values, then the floors of as many tags as there are hashes behind
-- the first; ARGV[6] nonce, ARGV[7] hashes, ARGV[8] the guard whose markers are lifted, ARGV[9] that which
-- leaves some, either empty if there is none, ARGV[10] milliseconds until those end; ARGV[11] the version
-- that the source has of the keys at least, empty if that is not said, ARGV[12] for how many milliseconds
-- that is remembered. Answers where it was logged, and how many of those that were to be lifted stood.
local SWEEP = 4
local floors = #KEYS + 2 - math.max(#ARGV[7] / 8, 1)
-- Values go first: that frees memory before anything asks for some.
if floors > 4 then redis.call('UNLINK', unpack(KEYS, 4, floors - 1)) end
local head = open()
local answer = announce(head, INVALIDATE, ARGV[6], ARGV[7])
raise(head, floors)

local lift, leave, now = ARGV[8], ARGV[9], now_ms()
local left = leave == '' and '' or leave .. word(now + tonumber(ARGV[10]))
if redis.call('TYPE', KEYS[3]).ok ~= 'hash' then redis.call('UNLINK', KEYS[3]) end

local function change(hash)
  local markers, kept, stood = redis.call('HGET', KEYS[3], hash) or '', '', 0
  for at = 1, #markers - MARKER + 1, MARKER do
    local guard, ends = marker_of(markers, at)
    if now < ends then
      if guard == lift then
        stood = 1
      elseif guard ~= leave then
        kept = kept .. markers:sub(at, at + MARKER - 1)
      end
    end
  end
  kept = kept .. left
  if kept ~= '' then
    redis.call('HSET', KEYS[3], hash, kept)
  elseif markers ~= '' then
    redis.call('HDEL', KEYS[3], hash)
  end
  return stood
end

-- Remembers a version, unless a higher one is: of two that stand the higher one counts, until the later end.
local function remember(hash, version, ends)
  local found = redis.call('HGET', KEYS[3], minimum_of(hash)) or ''
  if #found == MARKER and any_stands(found, now) then
    local there, until_then = marker_of(found, 1)
    if lower(version, there) then version = there end
    ends = math.max(ends, until_then)
  end
  redis.call('HSET', KEYS[3], minimum_of(hash), version .. word(ends))
end

local version, stood = ARGV[11], 0
for at = 9, #ARGV[7], 8 do
  local hash = ARGV[7]:sub(at, at + 7)
  stood = stood + change(hash)
  if version ~= '' then remember(hash, version, now + tonumber(ARGV[12])) end
end

-- What has ended is removed by those who write other keys, some of it each time.
if left ~= '' or version ~= '' then
  local some = redis.call('HRANDFIELD', KEYS[3], SWEEP, 'WITHVALUES')
  for i = 1, #some, 2 do
    if not any_stands(some[i + 1], now) then redis.call('HDEL', KEYS[3], some[i]) end
  end
end
return answer .. word(stood)
