-- ARGV: commands, each as the number of its words and then these. Answers which of them this user may not
-- run, counted from 1. One that the server does not know is one of them.
local denied, at, number = {}, 1, 1
while ARGV[at] do
  local words = tonumber(ARGV[at])
  local known, allowed = pcall(redis.acl_check_cmd, unpack(ARGV, at + 1, at + words))
  if not (known and allowed) then denied[#denied + 1] = number end
  at, number = at + words + 1, number + 1
end
return denied
