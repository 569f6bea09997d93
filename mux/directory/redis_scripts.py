"""The Lua scripts of the redis directory. Each touches the keys of one slot and is therefore atomic, on a cluster too.

A record is a hash: `record` (msgpack), `epoch`, `lifetime` (milliseconds), `pointer` (the key that names it), `next_id`
and `bytes` (of its log). Its time to live is the record's. Times are milliseconds.

A redis that is full refuses a script which begins by taking memory, and lets one be that has written anything before.
"""

import hashlib
from typing import Final, NamedTuple


class Script(NamedTuple):
    """A script and the name by which redis caches it."""

    text: str
    sha: str


def _script(text: str) -> Script:
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


CREATE: Final = _script("""
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
if ARGV[5] == '1' and redis.call('EXISTS', KEYS[2]) == 1 then return -1 end
redis.call('HSET', KEYS[1], 'record', ARGV[1], 'epoch', ARGV[2], 'lifetime', ARGV[3])
redis.call('HSET', KEYS[1], 'pointer', ARGV[4], 'next_id', ARGV[6])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('DEL', KEYS[2])
return 1
""")
"""Keys: record, end. Arguments: the record, its epoch, its lifetime, its pointer, 1 for one that stood before, its
first id. 1, or 0 where there was one, or -1 where it stood before and was removed.
"""

POINT: Final = _script("""
local named = redis.call('GET', KEYS[1])
if named and named ~= 'ended' and named ~= ARGV[2] and named ~= ARGV[1] then return named end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
if named and named ~= ARGV[1] then return 'reset' end
return 'created'
""")
"""Keys: pointer. Arguments: the record's token, the token of a record known to be gone, time to live.

`created`, `reset`, or the token that the pointer goes on naming.
"""

END: Final = _script("""
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('SET', KEYS[1], 'ended', 'PX', ARGV[2]) end
return 1
""")
"""Keys: pointer. Arguments: the token of the record that has ended, how long that is remembered."""

REPLACE: Final = _script("""
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'record', ARGV[2], 'epoch', ARGV[3], 'lifetime', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
redis.call('PUBLISH', ARGV[5], ARGV[6])
return 1
""")
"""Keys: record, log. Arguments: epoch, the changed record, its epoch, lifetime, channel, what is published."""

REMOVE: Final = _script("""
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 0 end
local lifetime = redis.call('HGET', KEYS[1], 'lifetime')
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('SET', KEYS[3], '', 'PX', lifetime)
redis.call('PUBLISH', ARGV[2], ARGV[3])
return 1
""")
"""Keys: record, log, end. Arguments: epoch, channel, what is published. That it has ended is kept for its lifetime.

It makes room first: a redis that is full takes it.
"""

TOUCH: Final = _script("""
local known = redis.call('HMGET', KEYS[1], 'lifetime', 'pointer')
if not known[1] then return false end
redis.call('PEXPIRE', KEYS[1], known[1])
redis.call('PEXPIRE', KEYS[2], known[1])
return known
""")
"""Keys: record, log. The record's lifetime and pointer."""

UNTOUCHED: Final = _script("""
local lifetime = redis.call('HGET', KEYS[1], 'lifetime')
if not lifetime then return false end
return tonumber(lifetime) - redis.call('PTTL', KEYS[1])
""")
"""Keys: record. Milliseconds since it was touched."""

DRAW: Final = _script("""
local next = redis.call('HGET', KEYS[1], 'next_id')
if not next then return false end
local known = math.max(0, ARGV[2] + 1 - next)
return redis.call('HINCRBY', KEYS[1], 'next_id', string.format('%.0f', ARGV[1] + known))
""")
"""Keys: record. Arguments: size of a block, the highest id that is known. The first id after the block."""

DRAW_SHARED: Final = _script("""
local known = math.max(0, ARGV[3] - (redis.call('GET', KEYS[1]) or 0))
local last = redis.call('INCRBY', KEYS[1], string.format('%.0f', ARGV[1] + known))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return last
""")
"""Keys: counter. Arguments: size of a block, time to live, the highest id that is known. The last id of the block."""

APPEND: Final = _script("""
local ttl = redis.call('PTTL', KEYS[1])
if ttl < 0 then return 0 end
local bytes = tonumber(redis.call('HGET', KEYS[1], 'bytes') or '0')
for i = 3, #ARGV, 2 do
  redis.call('XADD', KEYS[2], '*', ARGV[i], ARGV[i + 1])
  bytes = bytes + tonumber(ARGV[i])
end
local count = redis.call('XLEN', KEYS[2])
while count > 0 and (count > tonumber(ARGV[1]) or bytes > tonumber(ARGV[2])) do
  local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
  redis.call('XDEL', KEYS[2], oldest[1])
  count = count - 1
  bytes = bytes - tonumber(oldest[2][1])
end
redis.call('HSET', KEYS[1], 'bytes', bytes)
redis.call('PEXPIRE', KEYS[2], ttl)
return 1
""")
"""Keys: record, log. Arguments: entries and bytes to keep, then size and text of each entry."""

ENROLL: Final = _script("""
return redis.call('INCR', KEYS[1])
""")
"""Keys: counter. A number that was never given."""

BEAT: Final = _script("""
local was_alive = redis.call('EXISTS', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SADD', KEYS[2], ARGV[3])
if tonumber(redis.call('GET', KEYS[3]) or 0) < tonumber(ARGV[4]) then redis.call('SET', KEYS[3], ARGV[4]) end
return was_alive
""")
"""Keys: worker, all ids, counter. Arguments: the worker, its lease, its id, its number. 1 where it lived until now.

A redis that has lost its data learns which numbers were given.
"""

RETIRE: Final = _script("""
redis.call('DEL', KEYS[1])
redis.call('SREM', KEYS[2], ARGV[1])
return 1
""")
"""Keys: worker, all ids. Arguments: its id."""

WORKERS: Final = _script("""
local living = {}
for _, id in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local worker = redis.call('GET', ARGV[1] .. id)
  if worker then table.insert(living, worker) else redis.call('SREM', KEYS[1], id) end
end
return living
""")
"""Keys: all ids. Arguments: how the names of workers in its slot begin. All that live; others are forgotten."""

SETTLE: Final = _script("""
local home = redis.call('GET', KEYS[1])
if not home or home == ARGV[2] then home = ARGV[1] end
redis.call('SET', KEYS[1], home, 'PX', ARGV[3])
return home
""")
"""Keys: name. Arguments: the worker, the id of one known to be dead or to end, time to live. The id of its home."""
