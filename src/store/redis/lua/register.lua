-- KEYS[1] record of the namespace; ARGV[1] what is expected there, empty for nothing, ARGV[2] what to put
-- in its place. Answers what stands there afterwards.
local found = redis.call('GET', KEYS[1])
if (found or '') ~= ARGV[1] then return found end
redis.call('SET', KEYS[1], ARGV[2])
return ARGV[2]
