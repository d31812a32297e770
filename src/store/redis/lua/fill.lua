-- KEYS[2..] values; from ARGV[3] on, five for each: hash, token, epoch, envelope, and milliseconds,
-- empty if it does not expire. Answers for each whether it was stored.
local head = head_bytes()

local function fill(key, hash, token, epoch, envelope, ms)
  if not head or head:sub(1, 8) ~= epoch then return 0 end
  local lease, waited = lease_of(key)
  if lease ~= token then return 0 end
  if ms ~= '' then
    redis.call('SET', key, envelope, 'PX', ms)
  else
    redis.call('SET', key, envelope)
  end
  if waited then wake(head, hash) end
  return 1
end

local answers = {}
for i = 2, #KEYS do
  local at = 5 * i - 7
  answers[i - 1] = fill(KEYS[i], ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4])
end
return answers
