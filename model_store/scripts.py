"""The scripts that Redis runs: what may stand where something stands already.

Every value that a trainer writes begins with its stamp, (epoch, sequence) in twelve bytes, and is
kept only where nothing newer stands. Numbers, not strings, are compared: Lua orders strings by the
server's locale. Three words of 32 bits each, because a Lua number holds 53 bits. An equal pair is
the same writer repeating itself.

Who writes is the one whose claim stands: "epoch id rank/world", the id drawn by each writer for
itself. The epoch alone does not tell two writers apart once Redis has forgotten it. A writer whose
claim was overtaken, by another of at least its epoch, writes nothing and hears of it.
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

# The claim under `key` is `mine`, or what stands there is older, or gone. An empty one asks nobody.
_CLAIMED: Final = """
local function epoch_of(claim)
  return tonumber(string.match(claim, '^%d+')) or 0
end
local function overtaken(key, mine)
  local claim = mine ~= '' and redis.call('GET', key)
  return claim and claim ~= mine and epoch_of(claim) >= epoch_of(mine)
end
"""

# KEYS: values to write, then the claim. ARGV: TTL, the writer's claim, a value a key, and 'keep'
# where a tombstone stays whatever its age: what is written is no news of the id. Returns how many
# were written; to a writer with a claim -1 where it was overtaken, and -2 - e where something
# newer stood, of epoch e.
# MSETEX (Valkey 9.1, Redis 8.4) makes 455 k rows/s, a SET a row elsewhere 340 k.
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

# KEYS: seen lists, then the rows of the same users unless the stamp is empty. ARGV: TTL, bytes that
# a cut leaves, stamp, how, packed ids a list. A list whose user has a newer row stays as it is.
#   add      the ids are appended; at twice the bytes, whole ids are cut from the front
#   restore  the ids stand in front, unless the list is whole already or as long as a cut one, or
#            its user was removed
#   drop     the list is gone
# A list that begins with an empty id is whole: it has held all that its trainer remembers.
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
# Returns 1, or -1 where the claim was overtaken.
LOG: Final = (
    _CLAIMED
    + """
if overtaken(KEYS[2], ARGV[1]) then return -1 end
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', unpack(ARGV, 3))
return 1
"""
)

# KEYS: the claim. ARGV: the writer's claim, TTL. Returns 1 where it stands; 0 where it was gone or
# stood lower, and stands again; -1 where it was overtaken.
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

# KEYS: the model's description, the claim. ARGV: TTL, JSON, the writer's claim. One of an older
# epoch changes nothing. Returns 1, or what WRITE returns where it is refused.
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
# epoch above all three, or the claim that stands where it is of another rank of the same world.
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

# KEYS: the epoch. ARGV: an epoch that was seen, TTL. The next claim is above it.
ABOVE: Final = """
local known = tonumber(redis.call('GET', KEYS[1]) or '0')
if known < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2]) end
return 0
"""


def sha(script: str) -> bytes:
    """The name under which Redis keeps a script that was loaded."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest().encode()
