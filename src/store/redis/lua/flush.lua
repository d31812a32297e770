-- KEYS[1] pace, then head and log of each lane; ARGV[1] the lanes, 2 bytes each, ARGV[2] channel, ARGV[3]
-- milliseconds between two publishings; ARGV[4] who flushes as a relay, empty if nobody, ARGV[5] for how many
-- milliseconds it is one, ARGV[6] whether it takes over from another. Answers how many entries were
-- published; -1 if somebody else is the relay.
local state = redis.pcall('GET', KEYS[1])
local relayed = type(state) == 'string' and state:sub(1, 1) == RELAY
if ARGV[4] ~= '' then
  local own = RELAY .. ARGV[4]
  if relayed and state ~= own and ARGV[6] == '' then return -1 end
  redis.call('SET', KEYS[1], own, 'PX', ARGV[5])
elseif not relayed then
  -- From here on others may defer again, and find somebody to flush for them.
  rest(KEYS[1], ARGV[3])
end

local names = {}
for i = 2, #KEYS, 2 do names[i / 2] = KEYS[i] end
local heads, now, published = redis.call('MGET', unpack(names)), now_ms(), 0
for i = 1, #heads do
  local head = heads[i]
  local waiting = head and #head == 56 and unpublished(struct.unpack('>I6', head, 49)) or 0
  if waiting > 0 then
    local seq, key = struct.unpack('>I8', head, 9), 2 * i
    redis.call('SET', KEYS[key], head:sub(1, 48) .. struct.pack('>I6', now) .. head:sub(55))
    publish_log(ARGV[1]:sub(key - 1, key), KEYS[key + 1], head:sub(1, 8), seq - waiting + 1, seq, now)
    published = published + waiting
  end
end
return published
