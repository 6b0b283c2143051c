"""A number that identifies the current boot of this host.

Processes compare times, such as the expiry of a claim or the next send time. These are times of
``time.monotonic``, which neither NTP nor an administrator changes. That clock restarts at each
boot, so each time is stored with the number of its boot.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_number() -> int:
    """Return a number for this boot of this host, above 0 and below 2**56.

    On systems other than Linux, the number is the same for all boots. Times from another boot
    are then treated as times from this boot, so an old claim may be valid for as long as a new one.
    """
    try:
        boot_id = _BOOT_ID.read_bytes()
    except OSError:
        boot_id = b""
    return int.from_bytes(hashlib.sha256(boot_id.strip()).digest()[:7], "big") | 1
