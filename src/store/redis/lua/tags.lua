-- KEYS[2..] floors, two for each tag: of its name, then its own; ARGV[3] for how many milliseconds they
-- are needed, empty for ever. Answers the head, then for each tag the higher of its floors; nothing if
-- there is no head.
local keep = ARGV[3]
local head = head_bytes()
local seq = head and struct.unpack('>I8', head, 9) or 0
if seq < 1 or seq >= 2 ^ 48 then return {} end

-- A floor that is missing, or of a log that had grown longer before it was lost, is set to where the log
-- stands: what was filled before cannot be told from what was invalidated.
local function floor(key)
  local found = redis.pcall('GET', key)
  found = type(found) == 'string' and found:match('^%d+$') and tonumber(found)
  if not found or found > seq then
    redis.call('SET', key, decimal(seq))
    if keep ~= '' then redis.call('PEXPIRE', key, keep) end
    return seq
  end
  if keep == '' then
    redis.call('PERSIST', key)
  else
    redis.call('PEXPIRE', key, keep, 'GT')
  end
  return found
end

local answers = { head }
for i = 2, #KEYS, 2 do
  answers[#answers + 1] = math.max(floor(KEYS[i]), floor(KEYS[i + 1]))
end
return answers
