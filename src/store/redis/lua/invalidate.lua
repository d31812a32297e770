-- KEYS[3..] values; ARGV[6] nonce, ARGV[7] hashes.
-- Values go first: that frees memory before anything asks for some.
if #KEYS > 2 then redis.call('UNLINK', unpack(KEYS, 3)) end
local head = open()
local prev = append(head, INVALIDATE, ARGV[6], ARGV[7])
return head.epoch .. word(head.seq) .. prev
