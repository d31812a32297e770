-- KEYS[3] floor; ARGV[6] nonce, ARGV[7] hash of the entity.
local head = open()
local prev = append(head, CLEAR, ARGV[6], ARGV[7])
-- Without a floor there is nothing usable to clear: the next lease sets one that is higher still.
redis.call('SET', KEYS[3], decimal(head.seq), 'XX')
return head.epoch .. word(head.seq) .. prev
