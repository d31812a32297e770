-- A head of another life of the server is fenced: nothing shows that the tail of its log was not lost.
-- Who may not ask for the life leaves that to the chain of nonces.
local head = open()
if ARGV[3] ~= NONE and head.incarnation ~= ARGV[3] then fence(head) end
return encode(head)
