-- ARGV[2] the least member in the form of ZRANGEBYLEX, ARGV[3] how many.
-- Gives {1} to be asked again, or {0, position, whether nobody follows, then member and record …}.
local MAX_BYTES, STRIDE = 2 ^ 20, 16
local room, again = swept()
if again then return { 1 } end
if not room.seq then return { 0, '', 1 } end
local limit = tonumber(ARGV[3])
local members = redis.call('ZRANGEBYLEX', room.order, ARGV[2], '+', 'LIMIT', 0, limit)
local answer, bytes, at = { 0, position(room), #members < limit and 1 or 0 }, 0, 1
while at <= #members do
  if bytes > MAX_BYTES then
    answer[3] = 0
    break
  end
  local last = math.min(at + STRIDE - 1, #members)
  local records = redis.call('HMGET', room.records, unpack(members, at, last))
  for i, record in ipairs(records) do
    if record then
      bytes = bytes + #record
      answer[#answer + 1] = members[at + i - 1]
      answer[#answer + 1] = record
    end
  end
  at = last + 1
end
return answer
