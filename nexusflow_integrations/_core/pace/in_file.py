"""Limits that all processes of a host share, stored in a row of the cache file.

The arithmetic is that of ``GivenLimits``. Each send time is reserved in one short transaction, so
all processes together stay within the limit.
"""

from __future__ import annotations

import sqlite3
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from nexusflow_integrations._core.pace.shared import SlotLimits


class Transactions(Protocol):
    """The part of a cache file that the limits need."""

    @property
    def clock(self) -> Callable[[], float]:
        """A clock in seconds that gives all processes of this boot the same time."""

    @property
    def boot(self) -> int:
        """A number that identifies this boot; it is known once the file is open."""

    def transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        """Lock the file for one short write."""


class SharedPacer:
    """The ``SharedLimits`` of all processes that use the same file.

    Args:
        store: The cache file, whose clock all processes share.
        account: The result of ``account_id``.
        requests_per_minute: Limit of the account; ``None`` for no limit.
        tokens_per_minute: Limit on tokens; ``None`` for no limit.

    All methods raise what the methods of ``store`` raise.
    """

    def __init__(
        self,
        store: Transactions,
        account: bytes,
        *,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
    ) -> None:
        self.requests_per_minute = requests_per_minute
        self.tokens_per_minute = tokens_per_minute
        self._store = store
        self._account = account

    @property
    def processes(self) -> int:
        """Always 1: if the file cannot be used, most likely only this process is affected."""
        return 1

    def lease(
        self, count: int, tokens: int, *, owed_tokens: float = 0.0, late: float = 0.0
    ) -> list[float]:
        """Reserve ``count`` requests; see ``SharedLimits.lease``."""
        with self._limits() as (limits, now):
            limits.adjust(owed_tokens, late)
            slots = [limits.slot(tokens, now) for _ in range(count)]
        done = self._store.clock()
        return [slot - done for slot in slots]

    def adjust(self, tokens: float, late: float = 0.0) -> None:
        """Charge ``tokens`` (refund them if negative) and ``late`` seconds."""
        with self._limits() as (limits, _):
            limits.adjust(tokens, late)

    def throttled(self, ago: float) -> None:
        """Slow all processes down: a request sent ``ago`` seconds ago exceeded the rate limit."""
        with self._limits() as (limits, now):
            limits.throttled(sent_at=now - ago, now=now, hint=None)

    @contextmanager
    def _limits(self) -> Iterator[tuple[SlotLimits, float]]:
        limits = SlotLimits(self.requests_per_minute, self.tokens_per_minute)
        with self._store.transaction() as db:
            row = db.execute(
                "SELECT state FROM pacer WHERE account = ?", (self._account,)
            ).fetchone()
            now = self._store.clock()
            state = None if row is None else _unpacked(row[0], self._account)
            if state is not None:
                boot, seen, *owed = state
                # Ignore a state from another boot, as if nothing had been sent. On systems where
                # boots cannot be distinguished, `load` moves back times that are in the future.
                if boot == self._store.boot:
                    limits.load(tuple(owed), then=seen, now=now)
            yield limits, now
            packed = _packed((self._store.boot, now, *limits.dump(now)), self._account)
            db.execute("INSERT OR REPLACE INTO pacer VALUES(?, ?)", (self._account, packed))


_STATE = struct.Struct("<q6d")
"""The boot, the time of writing, and the result of ``SlotLimits.dump``."""


def _packed(state: tuple[float, ...], account: bytes) -> bytes:
    data = _STATE.pack(*state)
    return data + zlib.crc32(account + data).to_bytes(4, "big")


def _unpacked(packed: object, account: bytes) -> tuple[Any, ...] | None:
    """Return the values that were packed, or ``None`` if the checksum does not match."""
    if not isinstance(packed, bytes) or len(packed) != _STATE.size + 4:
        return None
    data, checksum = packed[:-4], packed[-4:]
    if zlib.crc32(account + data).to_bytes(4, "big") != checksum:
        return None
    return _STATE.unpack(data)
