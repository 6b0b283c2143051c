"""Limits that workers on any number of hosts share: ``GivenLimits`` as one Lua script.

The state of an account is one string of six numbers that only the script reads and writes. The
script uses the Redis server's clock, because all hosts share that clock. A test compares the script
with the Python arithmetic (``GivenLimits`` and ``SlotLimits``) on a simulated clock.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from nexusflow_integrations._core.pace.pacing import LEAST, REGAIN, SAFETY, SLACK
from nexusflow_integrations._core.pace.shared import MAX_AHEAD
from nexusflow_integrations._core.redis.server import CLOCK, RedisServer

_ACCOUNT = b"nexusflow:pacer:"
_PROCESSES = b"nexusflow:processes:"
_RECENT = 60.0
"""A process counts among those that share the limits for this many seconds after a request."""
_PATIENCE = 0.5
"""Seconds to wait for the server; after that, a process limits itself to its share."""
_KEPT = 86_400
"""Seconds after which the state of an unused account expires."""

_SCRIPT = (
    f"local SAFETY, SLACK, REGAIN, MAX_AHEAD = {SAFETY!r}, {SLACK!r}, {REGAIN!r}, {MAX_AHEAD!r}\n"
    f"local LEAST, KEPT, RECENT = {LEAST!r}, {_KEPT}, {_RECENT!r}\n"
    + CLOCK
    + """
-- KEYS: the account, and the processes that used it recently. ARGV: the calling process, the time,
-- requests and tokens per minute ('' for no limit), tokens to charge, seconds late, seconds since a
-- refused request was sent ('' for none), number of requests to reserve, tokens of each request.
-- Returns doubles: the number of recent processes, and the seconds until each request may be sent.
local never = -math.huge
local now = clock(ARGV[2])

local function bucket(per_minute)
  if per_minute == '' then return nil end
  local per_second = math.max(tonumber(per_minute), LEAST) / 60 * SAFETY
  return { per_second = per_second, slack = SLACK, next_at = never }
end
local requests, tokens = bucket(ARGV[3]), bucket(ARGV[4])
if requests then
  requests.slack = math.min(SLACK, math.max(0, 1 - 1 / requests.per_second))
end
local share, share_at, cut_at = 1, never, never

local state = redis.call('GET', KEYS[1])
if state and #state == 48 then
  local seen, requests_owed, tokens_owed, kept_share, kept_share_at, kept_cut_at =
    struct.unpack('<dddddd', state)
  -- If the clock was set back, move all stored times back by the same amount.
  local shift = math.min(0, now - seen)
  local function paid_off(bucket, owed)
    bucket.next_at = math.min(seen + shift + owed / bucket.per_second, now + MAX_AHEAD)
  end
  if requests then paid_off(requests, requests_owed) end
  if tokens then paid_off(tokens, tokens_owed) end
  share, share_at, cut_at =
    kept_share, math.min(kept_share_at + shift, now), kept_cut_at + shift
end

local owed, late = tonumber(ARGV[5]), tonumber(ARGV[6])
if requests then requests.next_at = requests.next_at + late end
if tokens then tokens.next_at = tokens.next_at + (late + owed / tokens.per_second) end

if ARGV[7] ~= '' and now - tonumber(ARGV[7]) > cut_at then
  cut_at, share_at = now, now
  share = math.max(0.1, share * 0.9)
end

local function first(slot, bucket, units)
  if not bucket then return slot end
  -- Earlier requests may have been sent up to `slack` seconds early. A request that needs all units
  -- of a second waits for that time to pass.
  local room = math.max(0, math.max(1, bucket.per_second) - units) / bucket.per_second
  return math.max(slot, bucket.next_at + math.max(0, bucket.slack - room) * 0.999)
end
local function take(slot, bucket, units)
  if not bucket then return end
  if slot - bucket.next_at > bucket.slack then bucket.next_at = slot end
  bucket.next_at = bucket.next_at + units / bucket.per_second
end

redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - RECENT)
redis.call('EXPIRE', KEYS[2], KEPT)
local answer = { struct.pack('<d', redis.call('ZCARD', KEYS[2])) }
local each = tonumber(ARGV[9])
for i = 1, tonumber(ARGV[8]) do
  local slot = first(first(now, requests, 1), tokens, each)
  if share < 1 then
    share = math.min(1, share + REGAIN * (slot - share_at))
    share_at = slot
  end
  take(slot, requests, 1 / share)
  take(slot, tokens, each / share)
  answer[i + 1] = struct.pack('<d', slot - now)
end

-- Store the debt instead of the time at which it is paid off, which depends on the limit.
local function owing(bucket)
  return bucket and (bucket.next_at - now) * bucket.per_second or 0
end
state = struct.pack('<dddddd', now, owing(requests), owing(tokens), share, share_at, cut_at)
redis.call('SET', KEYS[1], state, 'EX', KEPT)
return table.concat(answer)
"""
)


class AccountLimits:
    """The ``SharedLimits`` of all processes that use one Redis server.

    Args:
        server: The Redis server.
        account: Bytes that identify the account and the model; see ``account_id``.
        requests_per_minute: Limit of the account; ``None`` for no limit.
        tokens_per_minute: Limit on tokens; ``None`` for no limit.
        clock: A clock for tests; by default, the Redis server's clock.

    All methods raise what ``RedisServer.ask`` raises.
    """

    def __init__(
        self,
        server: RedisServer,
        account: bytes,
        *,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.requests_per_minute = requests_per_minute
        self.tokens_per_minute = tokens_per_minute
        self.server = server
        self.account = account
        self._processes = 1
        self._clock = clock

    @property
    def processes(self) -> int:
        """The number of processes that used the limits in the minute before Redis last replied.

        It is at least 1.
        """
        return self._processes

    def lease(
        self, count: int, tokens: int, *, owed_tokens: float = 0.0, late: float = 0.0
    ) -> list[float]:
        """Reserve ``count`` requests; see ``SharedLimits.lease``."""
        return self._run(owed=owed_tokens, late=late, count=count, tokens=tokens)

    def adjust(self, tokens: float, late: float = 0.0) -> None:
        """Charge ``tokens`` (refund them if negative) and ``late`` seconds."""
        self._run(owed=tokens, late=late)

    def throttled(self, ago: float) -> None:
        """Slow all processes down: a request sent ``ago`` seconds ago exceeded the rate limit."""
        self._run(ago=repr(ago))

    def _run(
        self,
        *,
        owed: float = 0.0,
        late: float = 0.0,
        ago: str = "",
        count: int = 0,
        tokens: int = 0,
    ) -> list[float]:
        now = "" if self._clock is None else repr(self._clock())
        args: list[Any] = [
            self.server.owner,
            now,
            "" if not self.requests_per_minute else repr(self.requests_per_minute),
            "" if not self.tokens_per_minute else repr(self.tokens_per_minute),
            repr(owed),
            repr(late),
            ago,
            count,
            tokens,
        ]

        keys = [_ACCOUNT + self.account, _PROCESSES + self.account]

        def work(client: Any) -> bytes:
            answer: bytes = self.server.run(_SCRIPT, keys, args, client=client)
            return answer

        answer = self.server.ask(work, patience=_PATIENCE)
        processes, *waits = struct.unpack(f"<{count + 1}d", answer)
        self._processes = max(1, int(processes))
        return waits
