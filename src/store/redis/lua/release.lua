-- KEYS[2] value; ARGV[3] hash, ARGV[4] token.
local token, waited = lease_of(KEYS[2])
if token ~= ARGV[4] then return 0 end
redis.call('UNLINK', KEYS[2])
local head = head_bytes()
if waited and head then wake(head, ARGV[3]) end
return 1
