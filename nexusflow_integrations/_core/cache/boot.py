"""A number that identifies the current boot of this host.

Times that processes compare (the expiry of a claim, the next send time) are stored in
``time.monotonic``, which neither NTP nor an administrator changes. It restarts at each boot, so
each time is stored with the number of its boot.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_number() -> int:
    """Return a number for this boot of this host, above 0 and below 2**56.

    On systems other than Linux it is the same for all boots. Times of another boot are then treated
    as times of this boot, so that an old claim may count for as long as a new one would.
    """
    try:
        boot_id = _BOOT_ID.read_bytes()
    except OSError:
        boot_id = b""
    return int.from_bytes(hashlib.sha256(boot_id.strip()).digest()[:7], "big") | 1
