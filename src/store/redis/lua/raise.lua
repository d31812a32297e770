-- Raises to the head those floors that are there, from KEYS[first] on. Without a floor there is nothing
-- usable that would have to go: who comes next sets one that is higher still.
local function raise(head, first)
  if first > #KEYS or redis.call('EXISTS', unpack(KEYS, first)) == 0 then return end
  for i = first, #KEYS do
    redis.call('SET', KEYS[i], decimal(head.seq), 'XX', 'KEEPTTL')
  end
end
