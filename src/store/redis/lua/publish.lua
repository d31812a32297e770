-- Shared by the steps that publish entries of a log: at once, or those of some milliseconds together.
--
-- While some of a lane's log is not published, its head has a number of entries in the place of its
-- milliseconds, above their highest bit. Who publishes next publishes all of them.
local UNPUBLISHED = 2 ^ 47
-- Entries that wait on a lane at most, and bytes of a message that takes no further one.
local AT_ONCE, MESSAGE = 2048, 16384
-- Why nobody publishes now, under the pace key: it was done just now, and may be again from a time on that
-- follows; somebody will flush; or a relay does, whose name follows. None stays longer than whom it is about.
local REST, FLUSHER, RELAY = 'I', 'F', 'R'
-- How many milliseconds a flusher may be late before nobody waits for it.
local OVERDUE = 50

local function unpublished(ms) return math.max(ms - UNPUBLISHED, 0) end

local function rest(pace_key, pace)
  redis.call('SET', pace_key, REST .. decimal(now_ms() + pace), 'PX', pace)
end

-- Publishes entries `first` to `last` of the log of `lane`, as few messages as they fit into. If they are
-- not there, or do not chain, then those before: pods read the others from the log.
local function publish_log(lane, log, epoch, first, last, ms)
  local batch
  local function send()
    if not batch then return end
    if batch.count == 1 then
      publish(batch.alone)
    else
      publish(hint(lane, BATCH, epoch, word(batch.last), NONE, NONE, ms, '')
        .. struct.pack('>I2', batch.count) .. batch.prev
        .. string.char(#batch.names) .. table.concat(batch.names) .. table.concat(batch.parts))
    end
    batch = nil
  end
  local function add(seq, kind, prev, nonce, hashes)
    local name, keys = hashes:sub(1, 8), #hashes / 8 - 1
    local alone = hint(lane, kind, epoch, word(seq), prev, nonce, ms, hashes)
    if not (kind == INVALIDATE and keys >= 1 and keys <= 255 or kind == CLEAR and keys == 0) then
      send()
      return publish(alone)
    end
    if batch and (batch.bytes > MESSAGE or #batch.names == 255 and not batch.places[name]) then send() end
    batch = batch or { count = 0, bytes = 0, prev = prev, names = {}, places = {}, parts = {} }
    if not batch.places[name] then
      batch.places[name] = string.char(#batch.names)
      batch.names[#batch.names + 1] = name
    end
    local part = batch.places[name] .. string.char(keys) .. nonce .. hashes:sub(9)
    batch.parts[#batch.parts + 1] = part
    batch.count, batch.bytes = batch.count + 1, batch.bytes + #part
    batch.last, batch.alone = seq, alone
  end

  local found = redis.pcall('XRANGE', log, decimal(first) .. '-0', decimal(last) .. '-0')
  local before
  for i = 1, #found do
    local id, entry = found[i][1], found[i][2][2]
    local prev = #entry >= 18 and entry:sub(3, 10)
    local follows = prev and entry:byte(1) == 1 and id == decimal(first + i - 1) .. '-0'
      and (not before or prev == before)
    if not follows then break end
    before = entry:sub(11, 18)
    add(first + i - 1, entry:sub(2, 2), prev, before, entry:sub(19))
  end
  send()
end
