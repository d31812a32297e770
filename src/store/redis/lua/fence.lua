-- ARGV[6] the epoch to end.
local head = open()
if head.epoch == ARGV[6] then fence(head) end
return encode(head)
