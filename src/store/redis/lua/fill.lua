-- KEYS[2] value; ARGV[3] hash, ARGV[4] token, ARGV[5] epoch, ARGV[6] envelope, ARGV[7] what it takes the
-- place of: L a lease or V a value; ARGV[8] milliseconds, if it expires.
local head = head_bytes()
if not head or head:sub(1, 8) ~= ARGV[5] then return 0 end
local token, waited
if ARGV[7] == 'V' then token = value_of(KEYS[2]) else token, waited = lease_of(KEYS[2]) end
if token ~= ARGV[4] then return 0 end
if ARGV[8] then
  redis.call('SET', KEYS[2], ARGV[6], 'PX', ARGV[8])
else
  redis.call('SET', KEYS[2], ARGV[6])
end
if waited then wake(head, ARGV[3]) end
return 1
