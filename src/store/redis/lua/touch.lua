-- ARGV[6] the life that this life of the server took over from when it was promoted, or nothing.
-- A head of any other life is fenced: nothing shows that the tail of its log was not lost.
local head = open()
if head.incarnation ~= ARGV[3] then
  if head.incarnation == ARGV[6] then fork(head) else fence(head) end
end
return encode(head)
