-- Shared by the steps that look at markers: a hash of the lane, from the hash of a key to 16 bytes for
-- each guard that is writing it, which are the guard and the millisecond at which its marker ends; and
-- from the hash of a key and a `v` to 16 bytes that are the version which the source has of it at least,
-- and the millisecond until which that is remembered.
local MARKER = 16

-- The field of the minimum version of a key.
local function minimum_of(hash) return hash .. 'v' end

-- The marker that begins at `at`: its guard, or the version, and its end.
local function marker_of(markers, at)
  return markers:sub(at, at + 7), (struct.unpack('>I8', markers, at + 8))
end

-- Whether any of `markers` stands.
local function any_stands(markers, now)
  for at = 1, #markers - MARKER + 1, MARKER do
    local _, ends = marker_of(markers, at)
    if now < ends then return true end
  end
  return false
end
