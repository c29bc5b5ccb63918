"""The Lua scripts that Redis runs, which decide whether a write may replace what is there.

Every value that a trainer writes begins with its stamp, (epoch, sequence) in twelve bytes, and does
not replace a value with a newer stamp. Stamps are compared as numbers, because Lua orders strings
by the server's locale, and as three words of 32 bits, because a Lua number holds 53 bits. Equal
stamps are a retry of the same write.

The current writer is the one whose claim is stored: "epoch id rank/world", with an id that each
writer draws at random. The epoch alone does not distinguish two writers after Redis has lost it. A
writer whose claim was replaced by another claim of at least its epoch writes nothing and gets an
error.
"""

import hashlib
from typing import Final

_PRECEDES: Final = """
local read = struct.unpack
local function precedes(new, old)
  local e, h, l = read('>I4I4I4', new)
  local oe, oh, ol = read('>I4I4I4', old)
  return e < oe or (e == oe and (h < oh or (h == oh and l < ol)))
end
"""

# overtaken(key, mine): another claim of at least our epoch is stored. An empty `mine` never is.
_CLAIMED: Final = """
local function epoch_of(claim)
  return tonumber(string.match(claim, '^%d+')) or 0
end
local function overtaken(key, mine)
  local claim = mine ~= '' and redis.call('GET', key)
  return claim and claim ~= mine and epoch_of(claim) >= epoch_of(mine)
end
"""

# KEYS: values to write, then the claim. ARGV: TTL, the writer's claim, one value per key, and
# 'keep' if tombstones must stay whatever their age (the write has no event of the id's own).
# Returns how many values were written. To a writer with a claim it returns -1 if that was
# overtaken, and -2 - e if a newer value, of epoch e, was found.
# MSETEX (Valkey 9.1, Redis 8.4) writes 455 k rows/s; with one SET per row it is 340 k.
WRITE: Final = (
    _PRECEDES
    + _CLAIMED
    + """
local ttl, count = ARGV[1], #KEYS - 1
if overtaken(KEYS[count + 1], ARGV[2]) then return -1 end
local keep = ARGV[count + 3] == 'keep'
local held = redis.call('MGET', unpack(KEYS, 1, count))
local set, last, newer = {'MSETEX', 0}, 2, -1
for i = 1, count do
  local key, new, old = KEYS[i], ARGV[i + 2], held[i]
  if old and #old >= 12 and precedes(new, old) then
    newer = math.max(newer, (read('>I4', old)))
  elseif not (keep and old and #old == 12) then
    set[last + 1], set[last + 2] = key, new
    last = last + 2
  end
end
local written = (last - 2) / 2
local answer = written
if ARGV[2] ~= '' and newer >= 0 then answer = -2 - newer end
if written == 0 then return answer end
set[2], set[last + 1], set[last + 2] = written, 'EX', ttl
local reply = redis.pcall(unpack(set))
if type(reply) == 'table' and reply.err then
  for at = 3, last, 2 do
    redis.call('SET', set[at], set[at + 1], 'EX', ttl)
  end
end
return answer
"""
)

# KEYS: seen lists, then the rows of the same users unless the stamp is empty. ARGV: TTL, bytes
# kept when a list is trimmed, stamp, action, packed ids for each list. The list of a user whose
# row is newer than the stamp is not changed.
#   add      append the ids; at twice the bytes, remove whole ids from the front
#   restore  prepend the ids, unless the list is complete or as long as a trimmed one, or the user
#            was removed
#   drop     delete the list
# A list that begins with an empty id is complete: it has held all items that the trainer
# remembers of the user.
SEEN: Final = (
    _PRECEDES
    + """
local ttl, most, stamp, how = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local count = #ARGV - 4
for i = 1, count do
  local key, ids, free, removed = KEYS[i], ARGV[i + 4], true, false
  if stamp ~= '' then
    local old = redis.call('GETRANGE', KEYS[count + i], 0, 12)
    free, removed = #old < 12 or not precedes(stamp, old), #old == 12
  end
  if free and how == 'drop' then
    redis.call('DEL', key)
  elseif free and how == 'restore' and not removed then
    local whole = redis.call('GETRANGE', key, 0, 1) == '\\0\\0'
    if not whole and redis.call('STRLEN', key) < most then
      redis.call('SET', key, '\\0\\0' .. ids .. (redis.call('GET', key) or ''))
    end
    redis.call('EXPIRE', key, ttl)
  elseif free and how == 'add' then
    local size = redis.call('APPEND', key, ids)
    if size > 2 * most then
      local all, at = redis.call('GET', key), 1
      while size - at + 1 > most do
        at = at + 2 + 256 * all:byte(at) + all:byte(at + 1)
      end
      redis.call('SET', key, all:sub(at))
    end
    redis.call('EXPIRE', key, ttl)
  end
end
return count
"""
)

# KEYS: the log, the claim. ARGV: the writer's claim, entries to keep, fields of the entry.
# Returns 1, or -1 if the claim was overtaken.
LOG: Final = (
    _CLAIMED
    + """
if overtaken(KEYS[2], ARGV[1]) then return -1 end
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', unpack(ARGV, 3))
return 1
"""
)

# KEYS: the claim. ARGV: the writer's claim, TTL. Returns 1 if the claim is stored; 0 if it was
# missing or of a lower epoch and is stored now; -1 if it was overtaken.
HOLD: Final = (
    _CLAIMED
    + """
if ARGV[1] == '' then return 1 end
if overtaken(KEYS[1], ARGV[1]) then return -1 end
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('EXPIRE', KEYS[1], ARGV[2])
  return 1
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 0
"""
)

# KEYS: the model's description, the claim. ARGV: TTL, JSON, the writer's claim. A description of
# an older epoch changes nothing. Returns 1, or what WRITE returns for a refused write.
DESCRIBE: Final = (
    _CLAIMED
    + """
local function epoch(json)
  local read, model = pcall(cjson.decode, json)
  return read and type(model) == 'table' and tonumber(model.epoch) or 0
end
if overtaken(KEYS[2], ARGV[3]) then return -1 end
local old = redis.call('GET', KEYS[1])
if old and epoch(ARGV[2]) < epoch(old) then
  return ARGV[3] == '' and 0 or -2 - epoch(old)
end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[1])
return 1
"""
)

# KEYS: the epoch, the claim. ARGV: a lower bound, TTL, the writer's id and rank/world. Returns an
# epoch above all three, or the stored claim if it belongs to another rank of the same world.
CLAIM: Final = (
    _CLAIMED
    + """
local standing = redis.call('GET', KEYS[2]) or ''
local rank, world = string.match(standing, ' (%d+)/(%d+)$')
local mine, all = string.match(ARGV[3], ' (%d+)/(%d+)$')
if world == all and rank ~= mine then return standing end
local known = tonumber(redis.call('GET', KEYS[1]) or '0')
local epoch = math.max(known, epoch_of(standing), tonumber(ARGV[1])) + 1
local text = string.format('%.0f', epoch)
redis.call('SET', KEYS[1], text, 'EX', ARGV[2])
redis.call('SET', KEYS[2], text .. ' ' .. ARGV[3], 'EX', ARGV[2])
return epoch
"""
)

# KEYS: the epoch. ARGV: an epoch that was found in a row, TTL. The next claim will be above it.
ABOVE: Final = """
local known = tonumber(redis.call('GET', KEYS[1]) or '0')
if known < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2]) end
return 0
"""


def sha(script: str) -> bytes:
    """Return the SHA-1 under which Redis stores a loaded script."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest().encode()
