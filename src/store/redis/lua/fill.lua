-- KEYS[2..] values; from ARGV[3] on, six for each: hash, token, epoch, envelope, what it takes the place
-- of (L a lease or V a value), and milliseconds, empty if it does not expire. Answers for each whether
-- it was stored.
local head = head_bytes()

local function fill(key, hash, token, epoch, envelope, replaces, ms)
  if not head or head:sub(1, 8) ~= epoch then return 0 end
  local there, waited
  if replaces == 'V' then there = value_of(key) else there, waited = lease_of(key) end
  if there ~= token then return 0 end
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
  local at = 6 * i - 9
  answers[i - 1] = fill(KEYS[i], unpack(ARGV, at, at + 5))
end
return answers
