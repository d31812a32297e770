-- Shared by the steps that may have to open an epoch.
-- KEYS[2] log of the lane; ARGV[3] incarnation, ARGV[4] epoch and ARGV[5] nonce to open with.
local LOG_LEN = 10000
-- Behind these come the pace key, and the milliseconds between two publishings, empty if each entry is
-- published at once. They are taken off, so that a step's own keys begin at 3 and arguments at 6.
local PACE_KEY, PACE = table.remove(KEYS, 3), table.remove(ARGV, 6)

local function encode(head)
  return head.epoch .. word(head.seq) .. head.nonce .. head.incarnation .. head.prev_epoch
    .. head.fork_seq .. struct.pack('>I6', head.ms) .. head.flags
end

local function log(seq, entry)
  return redis.pcall('XADD', KEYS[2], 'MAXLEN', '~', LOG_LEN, decimal(seq) .. '-0', 'e', entry)
end

-- Whether an entry waits until others are published with it: nil if it does not, otherwise the milliseconds
-- after which this caller has to flush, 0 if somebody else will. `waiting` wait already.
local function defer(waiting)
  if PACE == '' or waiting >= AT_ONCE - 1 then return nil end
  local state = redis.pcall('GET', PACE_KEY)
  if type(state) ~= 'string' then
    -- Nobody has published for as long, or who should have is late.
    rest(PACE_KEY, PACE)
    return nil
  end
  local due = state:match('^' .. REST .. '(%d+)$')
  if not due then return 0 end
  local ms = math.min(math.max(due - now_ms(), 1), PACE)
  redis.call('SET', PACE_KEY, FLUSHER, 'PX', ms + OVERDUE)
  return ms
end

-- Moves the head on by one entry and logs it; publishes it, if `deferred` is nil, with those that wait.
-- Gives the nonce of the entry before.
local function append(head, kind, nonce, hashes, deferred)
  local prev, waiting, now = head.nonce, unpublished(head.ms), now_ms()
  head.seq, head.nonce, head.ms = head.seq + 1, nonce, deferred and UNPUBLISHED + waiting + 1 or now
  redis.call('SET', KEYS[1], encode(head))
  local entry = '\1' .. kind .. prev .. nonce .. hashes
  local logged = log(head.seq, entry)
  if type(logged) == 'table' and logged.err then
    -- A log that is ahead of its head, or is no log, belongs to nothing any more.
    redis.call('UNLINK', KEYS[2])
    logged = log(head.seq, entry)
    if type(logged) == 'table' and logged.err then error(logged) end
  end
  if waiting == 0 and not deferred then
    publish(hint(ARGV[1], kind, head.epoch, word(head.seq), prev, nonce, now, hashes))
  elseif not deferred then
    publish_log(ARGV[1], KEYS[2], head.epoch, head.seq - waiting, head.seq, now)
  end
  return prev
end

-- Logs an invalidation or a clear. Gives what its caller is answered: where it was logged, the nonce of the
-- entry before, and after how many milliseconds to flush, 0 for never.
local function announce(head, kind, nonce, hashes)
  local deferred = defer(unpublished(head.ms))
  local prev = append(head, kind, nonce, hashes, deferred)
  return head.epoch .. word(head.seq) .. prev .. word(deferred or 0)
end

-- A new epoch is always published at once. What of the one before is not, pods read from the log, or flush
-- their lane.

-- Opens a new epoch that continues nothing. Numbers go on, so that the log stays one ordered stream.
local function fence(head)
  head.prev_epoch, head.fork_seq = head.epoch, word(head.seq)
  head.epoch, head.incarnation, head.flags, head.ms = ARGV[4], ARGV[3], '\0\0', 0
  append(head, FENCE, ARGV[5], '')
end

-- Opens a new epoch that continues the one before, up to here: the server followed that as a replica.
local function fork(head)
  head.prev_epoch, head.fork_seq = head.epoch, word(head.seq)
  head.epoch, head.incarnation, head.ms = ARGV[4], ARGV[3], 0
  head.flags = struct.pack('>I2', math.floor(now_ms() / 1000) % 32768 * 2 + 1)
  append(head, FORK, ARGV[5], '')
end

-- The head of the lane; a lane without one gets a new epoch.
local function open()
  local bytes = head_bytes()
  if bytes then
    local seq = struct.unpack('>I8', bytes, 9)
    if seq >= 1 and seq < 2 ^ 48 then
      return {
        epoch = bytes:sub(1, 8), seq = seq, nonce = bytes:sub(17, 24),
        incarnation = bytes:sub(25, 32), prev_epoch = bytes:sub(33, 40),
        fork_seq = bytes:sub(41, 48), ms = struct.unpack('>I6', bytes, 49),
        flags = bytes:sub(55, 56),
      }
    end
  end
  redis.call('UNLINK', KEYS[1], KEYS[2])
  local head = {
    epoch = ARGV[4], seq = 0, nonce = NONE, incarnation = ARGV[3],
    prev_epoch = NONE, fork_seq = NONE, ms = 0, flags = '\0\0',
  }
  append(head, FENCE, ARGV[5], '')
  return head
end
