"""The store on a Redis server, for workers on any number of hosts.

Keys (``Keyer``) and claims are the same as in the file; texts and API keys are never sent. Each
vector is a separate string, so that a server with too little memory can evict single vectors; an
evicted vector counts as absent. All claims are in one hash, which is always in use and thus is
evicted last. Each atomic step is one Lua script or one MULTI. All clients use the server's clock.
Stored vectors survive the death of the process; whether they survive the death of the server
depends on the server's persistence settings. All methods block, so the engine calls them in a
separate thread.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

from nexusflow_integrations._core.cache.file import DAY, FORGOTTEN
from nexusflow_integrations._core.cache.in_file import Claimed
from nexusflow_integrations._core.cache.keys import KIND_BYTES, Keyer
from nexusflow_integrations._core.cache.rows import (
    DamageLog,
    dimensions_of,
    is_whole,
    packed,
    unpacked,
)
from nexusflow_integrations._core.cache.upkeep import CacheInfo, ModelRows, Pruned
from nexusflow_integrations._core.redis.address import RedisAddress
from nexusflow_integrations._core.redis.server import CLOCK, RedisServer
from nexusflow_integrations._core.vectors import Vectors

SCHEMA_VERSION = 1
_SCHEMA = b"nexusflow:schema"
_VECTOR = b"nexusflow:vector:"
_CLAIMS = b"nexusflow:claims"
_KINDS = b"nexusflow:kinds"
_SIZES = b"nexusflow:sizes"
_COUNTS = b"nexusflow:counts"
_HASHES = (_CLAIMS, _KINDS, _SIZES, _COUNTS)
_CALLS = 1 << 20
"""How many calls of one process have distinct numbers."""
_AT_ONCE = 512
"""Maximum keys in one command, because the server does nothing else in the meantime."""
_MIN_CLAIM = 0.1
CLOCK_SLACK = 1.0
"""Seconds that a claim may be in the future, as after a small step back of the server's clock."""
_NEVER = 1e18
"""A number of seconds that never pass."""

T = TypeVar("T")

# A claim is "owner ticket since until sent". The owner is hexadecimal and ends with the number of
# the call. Each request to claim has its own ticket, so that the request can be repeated if its
# answer was lost. "sent" is 1 if a request with the text was sent.
_READ = (
    CLOCK
    + """
local function read(claim)
  if not claim then return end
  local owner, ticket, since, till, sent =
    string.match(claim, '^(%x+) (%x+) (%S+) (%S+) ([01])$')
  since, till = tonumber(since), tonumber(till)
  if since and till then return owner, ticket, since, till, sent end
end
-- A claim is valid for at most the usual time, even if its stored time is later.
local function is_live(since, till, now, hold, slack)
  return since - slack <= now and now < math.min(till, since + hold)
end
local function write(owner, ticket, now, hold, sent)
  return string.format('%s %s %.6f %.6f %s', owner, ticket, now, now + hold, sent)
end
"""
)
_CLAIM = (
    _READ
    + """
-- KEYS: the claims, then the vectors. ARGV: the time, owner, ticket, seconds that a claim is valid,
-- slack of the clock, number of keys to claim, 1 if the texts are sent at once, and for each vector
-- the invalid value that was read before.
-- Returns for each key: the vector if it was stored in the meantime, 0 for busy, 1 for claimed, 2
-- for claimed after another owner had sent the text, 3 for not claimed.
local now, owner, ticket = clock(ARGV[1]), ARGV[2], ARGV[3]
local hold, slack, most = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local answers = {}
for i = 2, #KEYS do
  local row = redis.call('MGET', KEYS[i])[1]
  if row and row ~= ARGV[6 + i] then
    answers[i - 1] = row
  else
    local field = string.sub(KEYS[i], -24)
    local holder, call, since, till, sent = read(redis.call('HGET', KEYS[1], field))
    local live = holder and is_live(since, till, now, hold, slack)
    if live and not (holder == owner and call == ticket) then
      answers[i - 1] = 0
    elseif most < 1 then
      answers[i - 1] = 3
    else
      redis.call('HSET', KEYS[1], field, write(owner, ticket, now, hold, ARGV[7]))
      most = most - 1
      answers[i - 1] = (sent == '1' and holder ~= owner) and 2 or 1
    end
  end
end
return answers
"""
)
_RELEASE = (
    _READ
    + """
-- KEYS: the claims. ARGV: the owner, or the beginning that all its calls share, then keys of
-- vectors.
for i = 2, #ARGV do
  local holder = read(redis.call('HGET', KEYS[1], ARGV[i]))
  if holder and string.sub(holder, 1, #ARGV[1]) == ARGV[1] then
    redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
"""
)
_RENEW = (
    _READ
    + """
-- KEYS: the claims. ARGV: the time, owner, seconds that a claim is valid, 1 if the texts are sent
-- now, then keys of vectors. Returns the keys that the owner no longer holds.
local now, lost = clock(ARGV[1]), {}
for i = 5, #ARGV do
  local holder, call, _, _, sent = read(redis.call('HGET', KEYS[1], ARGV[i]))
  if holder == ARGV[2] then
    if ARGV[4] == '1' then sent = 1 end
    redis.call('HSET', KEYS[1], ARGV[i], write(holder, call, now, ARGV[3], sent))
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
"""
)
_SURVEY = (
    _READ
    + """
-- KEYS: the claims. ARGV: the time, seconds after which a claim is abandoned, seconds that a claim
-- is valid, slack of the clock. Returns the number of live claims.
local now, live = clock(ARGV[1]), 0
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local holder, _, since, till = read(all[i + 1])
  if not holder or till < now - ARGV[2] then
    redis.call('HDEL', KEYS[1], all[i])
  elseif is_live(since, till, now, tonumber(ARGV[3]), tonumber(ARGV[4])) then
    live = live + 1
  end
end
return live
"""
)


@dataclass
class _Session:
    """The claims of one owner, and the statistics that its next write saves."""

    owner: str = ""
    claimed: dict[bytes, int] = field(default_factory=dict)  # the call that has claimed each key
    hits: int = 0
    misses: int = 0
    read: bool = False


class RedisStore:
    """The vectors of a Redis database, with the same methods as ``VectorStore``.

    The object is meant for one dedicated thread; a lock makes it safe for other threads. It can be
    pickled, and survives a fork: the child connects again.

    Args:
        address: The server and database. Other applications may use the same database: all names of
            this package begin with ``nexusflow:``.
        clock: A clock for tests; the default is the server's clock.
        claim_seconds: Seconds that a claim is valid unless it is renewed.

    All methods that use the server raise ``CacheError`` if it is not a Redis server, or if the data
    under these names belongs to another program or has a newer format (it is then not changed), and
    ``StoreUnavailable`` if the server cannot be used.
    """

    def __init__(
        self,
        address: RedisAddress,
        *,
        clock: Callable[[], float] | None = None,
        claim_seconds: float = 10.0,
    ) -> None:
        self.server = RedisServer(address)
        self.clock = clock
        self.claim_seconds = max(_MIN_CLAIM, claim_seconds)
        self._begin()

    def _begin(self) -> None:
        self._damage = DamageLog(self.path)
        self._kinds: dict[bytes, Keyer] = {}
        self._tickets = count(1)
        self._session = _Session()

    def __getstate__(self) -> dict[str, Any]:
        return {"server": self.server, "clock": self.clock, "claim_seconds": self.claim_seconds}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def __repr__(self) -> str:
        return f"RedisStore({self.path if 'server' in vars(self) else ''!r})"

    @property
    def path(self) -> str:
        """The URL, without the password."""
        return str(self.server.address)

    def keyer(self, *, base_url: str, model: str, dimensions: int | None, added: str = "") -> Keyer:
        """Return a ``Keyer``, and record the model for ``info``."""
        keyer = Keyer(base_url=base_url, model=model, dimensions=dimensions, added=added)
        return self._kinds.setdefault(keyer.prefix, keyer)

    # -- vectors and claims --------------------------------------------------------------------

    def claim(
        self,
        keys: Sequence[bytes],
        dimensions: int | None,
        *,
        call: int = 0,
        most: int | None = None,
        sent: bool = False,
    ) -> Claimed:
        """Find stored vectors and claim the other keys, as ``VectorStore.claim`` does.

        If ``dimensions`` is ``None`` and there are several sizes, the size of the vector
        stored last is used.
        """
        wanted = list(dict.fromkeys(keys))
        ticket = f"{next(self._tickets):x}"

        def work(client: Any) -> Claimed:
            session = self._session
            found = _rows(client, wanted)
            whole = self._whole(found)
            size = dimensions if dimensions is not None else _newest_size(client, whole)
            hits = unpacked(whole, size)
            answers: dict[bytes, int] = {}
            missing = [key for key in wanted if key not in hits]
            left = len(missing) if most is None else most
            owner = _owner_of(session, call)
            while missing:
                late: dict[bytes, bytes] = {}
                for some in _pieces(missing):
                    terms = [self.claim_seconds, CLOCK_SLACK, left, int(sent)]
                    args = [self._now(), owner, ticket, *terms]
                    replies = self.server.run(
                        _CLAIM,
                        [_CLAIMS, *(_VECTOR + key for key in some)],
                        [*args, *(found.get(key, b"") for key in some)],
                        client=client,
                    )
                    for key, answer in zip(some, replies, strict=True):
                        (late if isinstance(answer, bytes) else answers)[key] = answer
                        left -= answer in (1, 2)
                whole = self._whole(late)
                if hits:
                    size = len(next(iter(hits.values())))
                elif not size and whole:
                    size = dimensions_of(whole[-1][1])
                hits |= unpacked(whole, size)
                found |= late
                missing = [key for key in late if key not in hits]
            mine = [key for key in wanted if answers.get(key) in (1, 2)]
            session.claimed.update(dict.fromkeys(mine, call))
            session.hits += len(hits)
            session.misses += len(mine)
            session.read = session.read or bool(hits)
            busy = [key for key in wanted if answers.get(key) == 0]
            repaid = sum(answer == 2 for answer in answers.values())
            return Claimed(hits, mine, busy, repaid)

        return self._using(work)

    def _whole(self, rows: dict[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        whole = [(key, row) for key, row in rows.items() if is_whole(key, row)]
        self._damage.note(len(rows) - len(whole))
        return whole

    def present(self, keys: Sequence[bytes]) -> set[bytes]:
        """Return the ``keys`` that have a row, without claiming or counting anything."""

        def work(client: Any) -> set[bytes]:
            stored: set[bytes] = set()
            for some in _pieces(list(dict.fromkeys(keys))):
                pipe = client.pipeline(transaction=False)
                for key in some:
                    pipe.exists(_VECTOR + key)
                stored.update(key for key, there in zip(some, pipe.execute(), strict=True) if there)
            return stored

        return self._using(work)

    def put(self, rows: Sequence[tuple[bytes, Vectors]]) -> None:
        """Store vectors, float32 of shape (d,), in one transaction, and end the claims on them."""
        if not rows:
            return
        data = {key: packed(key, vector) for key, vector in rows}
        sizes = {key[:KIND_BYTES]: dimensions_of(row) for key, row in data.items()}

        def work(client: Any) -> None:
            session = self._session
            pipe = client.pipeline(transaction=True)
            for some in _pieces(list(data)):
                pipe.mset({_VECTOR + key: data[key] for key in some})
                pipe.hdel(_CLAIMS, *some)
            pipe.hset(_SIZES, mapping=sizes)
            # Write these every time: the server may have been emptied, or may have evicted them.
            pipe.set(_SCHEMA, SCHEMA_VERSION, nx=True)
            for prefix in sizes.keys() & self._kinds.keys():
                pipe.hset(_KINDS, prefix, _described(self._kinds[prefix]))
            day = self._today()
            pipe.hsetnx(_COUNTS, "created", day)
            self._note(pipe, session, day)
            pipe.execute()
            for key in data:
                session.claimed.pop(key, None)
            session.hits = session.misses = 0

        self._using(work)

    def _note(self, pipe: Any, session: _Session, day: int) -> None:
        pipe.hset(_COUNTS, "used", day)
        for name, more in (("hits", session.hits), ("misses", session.misses)):
            if more:
                pipe.hincrby(_COUNTS, name, more)

    def release(self, keys: Iterable[bytes], call: int = 0) -> None:
        """Give up claims of ``call`` on ``keys``, so that others may pay for them immediately."""
        given = list(keys)

        def work(client: Any) -> None:
            session = self._session
            for some in _pieces(given):
                owner = _owner_of(session, call)
                self.server.run(_RELEASE, [_CLAIMS], [owner, *some], client=client)
            for key in given:
                if session.claimed.get(key) == call:
                    del session.claimed[key]

        if given:
            self._using(work)

    def renew(self, keys: Iterable[bytes], call: int = 0) -> None:
        """Extend claims by ``claim_seconds``; claims that expired and were taken over are lost."""
        self._renew(list(keys), call, sent=0)

    def confirm(self, keys: Sequence[bytes], call: int = 0) -> set[bytes]:
        """Renew claims and mark them as sent, as ``VectorStore.confirm`` does."""
        return self._renew(keys, call, sent=1)

    def _renew(self, keys: Sequence[bytes], call: int, *, sent: int) -> set[bytes]:
        def work(client: Any) -> set[bytes]:
            owner = _owner_of(self._session, call)
            lost: set[bytes] = set()
            for some in _pieces(keys):
                args = [self._now(), owner, self.claim_seconds, sent, *some]
                lost.update(self.server.run(_RENEW, [_CLAIMS], args, client=client))
            return lost

        return self._using(work) if keys else set()

    def together(self, work: Callable[[], T]) -> T:
        """Return the result of ``work``; on a server, each write is a separate step."""
        return work()

    def probe(self) -> None:
        """Write a number that nobody reads, to find out whether the server accepts writes."""
        self._using(lambda client: client.hincrby(_COUNTS, "probes", 1))

    # -- maintenance ---------------------------------------------------------------------------

    def info(self) -> CacheInfo:
        """Describe the contents; vectors that are added or removed in the meantime may be missed.

        ``bytes`` is the server's memory, estimated from one vector of each model; ``created`` is
        the time at which the first vector after the last ``clear`` was stored.
        """

        def work(client: Any) -> CacheInfo:
            self._check(client)
            rows: dict[bytes, int] = {}
            samples: dict[bytes, bytes] = {}
            for name in client.scan_iter(match=_VECTOR + b"*", count=_AT_ONCE):
                prefix = name[len(_VECTOR) :][:KIND_BYTES]
                rows[prefix] = rows.get(prefix, 0) + 1
                samples[prefix] = name
            kinds = client.hgetall(_KINDS)
            counts = client.hgetall(_COUNTS)
            models = [_model(kinds.get(prefix), count) for prefix, count in rows.items()]
            session = self._session
            return CacheInfo(
                path=self.path,
                bytes=sum(
                    count * int(client.memory_usage(samples[prefix]) or 0)
                    for prefix, count in rows.items()
                ),
                vectors=sum(rows.values()),
                models=tuple(sorted(models, key=lambda model: -model.vectors)),
                hits=(_number(counts.get(b"hits")) or 0) + session.hits,
                misses=(_number(counts.get(b"misses")) or 0) + session.misses,
                created=_number(counts.get(b"created")),
                used=_number(counts.get(b"used")),
                in_flight=self._live_claims(client),
            )

        return self.server.ask(work)

    def prune(self, *, max_age: float | None = None, max_bytes: int | None = None) -> Pruned:
        """Remove vectors that were not used for a long time, while others may use the database.

        The server forgets the time of last use when it restarts. With an LFU eviction policy, it
        does not know that time at all, so ``StoreUnavailable`` is raised.

        Args:
            max_age: Remove vectors unused for longer than this number of seconds. ``None`` is no
                limit.
            max_bytes: Maximum memory of all vectors; the least recently used are removed first.
                ``None`` is no limit.
        """

        def work(client: Any) -> Pruned:
            self._check(client)
            # Seconds since the last use, bytes and name of each vector.
            found: list[tuple[int, int, bytes]] = []
            for names in _name_pages(client):
                pipe = client.pipeline(transaction=False)
                for name in names:
                    pipe.object("IDLETIME", name)
                    pipe.memory_usage(name)
                replies = iter(pipe.execute())
                found += [
                    (idle, size, name)
                    for name, idle, size in zip(names, replies, replies, strict=False)
                    if idle is not None and size is not None
                ]
            found.sort(reverse=True)
            size = sum(one[1] for one in found)
            gone: list[bytes] = []
            removed = 0
            for idle, each, name in found:
                too_old = max_age is not None and idle > max_age
                if not too_old and (max_bytes is None or size - removed <= max_bytes):
                    break
                gone.append(name)
                removed += each
            return Pruned(_unlink(client, gone), removed)

        return self.server.ask(work)

    def clear(self) -> Pruned:
        """Remove all vectors and all counts."""

        def work(client: Any) -> Pruned:
            self._check(client)
            before = self.info()
            removed = sum(_unlink(client, names) for names in _name_pages(client))
            client.unlink(_KINDS, _SIZES, _COUNTS)
            self._session.hits = self._session.misses = 0
            return Pruned(removed, before.bytes)

        return self.server.ask(work)

    # -- lifecycle -----------------------------------------------------------------------------

    def open(self) -> None:
        """Connect, and check which program made the data. All other methods do this themselves."""
        self._using(lambda _: None)

    def close(self) -> None:
        """Give up all claims and drop the connection. Never raises."""
        session, self._session = self._session, _Session()
        if session.owner and session.owner == self.server.owner and not self.server.is_away:
            with suppress(Exception):
                self.server.ask(lambda client: self._leave(client, session))
        self.server.close()

    def _leave(self, client: Any, session: _Session) -> None:
        for some in _pieces(list(session.claimed)):
            self.server.run(_RELEASE, [_CLAIMS], [session.owner, *some], client=client)
        if session.read or session.misses:
            pipe = client.pipeline(transaction=False)
            self._note(pipe, session, self._today())
            pipe.execute()

    def _using(self, work: Callable[[Any], T]) -> T:
        def opened(client: Any) -> T:
            # This is the first use, or the first after a fork.
            if self._session.owner != self.server.owner:
                self._check(client)
                client.set(_SCHEMA, SCHEMA_VERSION, nx=True)
                self._live_claims(client, forget=FORGOTTEN)
                self._session = _Session(self.server.owner)
            return work(client)

        return self.server.ask(opened)

    def _check(self, client: Any) -> None:
        """Refuse data that belongs to another program, without changing the data."""
        pipe = client.pipeline(transaction=False)
        pipe.mget(_SCHEMA)
        for name in (_SCHEMA, *_HASHES):
            pipe.type(name)
        (version,), kind, *kinds = pipe.execute()
        if kind not in (b"string", b"none") or not {*kinds} <= {b"hash", b"none"}:
            raise self.server.foreign("holds other data under the names of this cache")
        if version is None:
            return
        if not version.isdigit():
            raise self.server.foreign("holds other data under the names of this cache")
        if int(version) > SCHEMA_VERSION:
            raise self.server.foreign(
                "was written by a newer version of nexusflow-integrations (format"
                f" {int(version)}, this version reads {SCHEMA_VERSION})"
            )

    def _live_claims(self, client: Any, *, forget: float = _NEVER) -> int:
        args = [self._now(), forget, self.claim_seconds, CLOCK_SLACK]
        return int(self.server.run(_SURVEY, [_CLAIMS], args, client=client))

    def _now(self) -> str:
        return "" if self.clock is None else repr(self.clock())

    def _today(self) -> int:
        return int((self.clock or time.time)()) // DAY * DAY


def _owner_of(session: _Session, call: int) -> str:
    return f"{session.owner}{call % _CALLS:05x}"


def _pieces(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(keys), _AT_ONCE):
        yield keys[start : start + _AT_ONCE]


def _rows(client: Any, keys: Sequence[bytes]) -> dict[bytes, bytes]:
    return {
        key: row
        for some in _pieces(keys)
        for key, row in zip(some, client.mget([_VECTOR + key for key in some]), strict=True)
        if row is not None
    }


def _newest_size(client: Any, rows: Sequence[tuple[bytes, bytes]]) -> int:
    """Return the dimensions to use if the caller did not set any."""
    sizes = {dimensions_of(row) for _, row in rows}
    if len(sizes) > 1:
        prefixes = {key[:KIND_BYTES] for key, _ in rows}
        put_last = client.hmget(_SIZES, *prefixes)
        sizes = {size for size in sizes if str(size).encode() in put_last} or sizes
    return max(sizes, default=0)


def _described(kind: Keyer) -> str:
    return json.dumps([kind.base_url, kind.model, kind.dimensions])


def _model(described: bytes | None, vectors: int) -> ModelRows:
    try:
        base_url, model, dimensions = json.loads(described or b"")
    except (ValueError, TypeError):
        return ModelRows("?", "?", None, vectors)
    return ModelRows(base_url, model, dimensions, vectors)


def _number(reply: bytes | None) -> int | None:
    return int(reply) if reply and reply.isdigit() else None


def _name_pages(client: Any) -> Iterator[list[bytes]]:
    cursor = 0
    while True:
        cursor, names = client.scan(cursor, match=_VECTOR + b"*", count=_AT_ONCE)
        if names:
            yield names
        if not cursor:
            return


def _unlink(client: Any, names: Sequence[bytes]) -> int:
    return sum(int(client.unlink(*some)) for some in _pieces(names))
