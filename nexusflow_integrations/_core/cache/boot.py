"""Which boot of which host this is: what ``time.monotonic`` counts from, for all its processes.

Times that several processes compare (until when a claim holds, when the next request may leave) are
kept on that clock, which neither NTP nor an administrator sets. Another boot's times mean nothing
here, so each is kept with the number of its boot.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_number() -> int:
    """Return a number that stands for this boot of this host, above 0 and below 2**56.

    Where the system does not tell (anywhere but on Linux) it is the same for all boots. A time of
    another boot is then judged as one of this boot: a claim may be believed that should not be, for
    as long as a claim holds.
    """
    try:
        told = _BOOT_ID.read_bytes()
    except OSError:
        told = b""
    return int.from_bytes(hashlib.sha256(told.strip()).digest()[:7], "big") | 1
