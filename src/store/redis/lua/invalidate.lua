-- KEYS[3..] values, then the floors of as many tags as there are hashes behind the first; ARGV[6] nonce,
-- ARGV[7] hashes.
local floors = #KEYS + 2 - math.max(#ARGV[7] / 8, 1)
-- Values go first: that frees memory before anything asks for some.
if floors > 3 then redis.call('UNLINK', unpack(KEYS, 3, floors - 1)) end
local head = open()
local answer = announce(head, INVALIDATE, ARGV[6], ARGV[7])
raise(head, floors)
return answer
