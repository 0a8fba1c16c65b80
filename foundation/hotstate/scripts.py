"""What runs inside Redis, in Lua: a script is atomic. `KEYS[1]` names the generation and `ARGV[1]` is the one that is
believed; values begin with a mark, which tells them from nothing.
https://redis.io/docs/latest/develop/interact/programmability/eval-intro/
"""

from __future__ import annotations

MARK = b"="
ANOTHER = "GENERATION"  # what a script answers when its entries are not those that it was sent for
_CHECKED = f"""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return redis.error_reply('{ANOTHER} is another') end
"""
# ARGV: the server's run ID, and what the generation becomes when there is none of this run.
LEARN = """
local held = redis.call('GET', KEYS[1])
if held and string.sub(held, 1, #ARGV[1]) == ARGV[1] then return held end
redis.call('SET', KEYS[1], ARGV[2])
return ARGV[2]
"""
GENERATION = f"{_CHECKED} return ARGV[1]"
PUT_ONCE = f"""{_CHECKED}
return redis.call('SET', KEYS[2], ARGV[2], 'NX', 'PX', ARGV[3]) and 1 or 0
"""
TAKE = f"""{_CHECKED}
local held = redis.call('GET', KEYS[2])
redis.call('DEL', KEYS[2])
return held
"""
DELETE = f"""{_CHECKED}
return redis.call('DEL', KEYS[2])
"""
GET_MANY = f"""{_CHECKED}
local found = {{}}
for i = 2, #KEYS do found[i - 1] = redis.call('GET', KEYS[i]) end
return found
"""
# ARGV: milliseconds, and for each key what is expected and what is to be; empty is no entry.
SWAP = f"""{_CHECKED}
local done = {{}}
for i = 2, #KEYS do
  local key, before, after = KEYS[i], ARGV[2 * i - 1], ARGV[2 * i]
  if (redis.call('GET', key) or '') ~= before then
    done[i - 1] = 0
  else
    if after == '' then redis.call('DEL', key)
    elseif after == before then redis.call('PEXPIRE', key, ARGV[2])
    else redis.call('SET', key, after, 'PX', ARGV[2]) end
    done[i - 1] = 1
  end
end
return done
"""
