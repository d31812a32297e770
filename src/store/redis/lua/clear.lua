-- KEYS[3] floor of the entity, KEYS[4] of its name as a tag; ARGV[6] nonce, ARGV[7] hash of the name.
local head = open()
local answer = announce(head, CLEAR, ARGV[6], ARGV[7])
raise(head, 3)
return answer
