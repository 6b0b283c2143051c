"""Run a command where there is no network but loopback: ``python only_loopback.py COMMAND ...``.

It makes a network namespace by itself, without ``unshare`` or ``ip``. Where that is not allowed it
says why and exits with 77.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
from pathlib import Path

NOT_ALLOWED = 77

_NEW_USER = 0x10000000
_NEW_NET = 0x40000000
_SET_FLAGS = 0x8914  # SIOCSIFFLAGS
_UP = 1


def leave_the_network() -> None:
    """Move this process into a network namespace of its own, whose loopback is up.

    Raises:
        OSError: It is not allowed.
    """
    try:
        _unshare(_NEW_NET)  # root may
    except PermissionError:
        user, group = os.getuid(), os.getgid()
        _unshare(_NEW_USER | _NEW_NET)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh22x", b"lo", _UP))


def _unshare(flags: int) -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    try:
        leave_the_network()
    except (OSError, AttributeError) as error:
        print(f"no network namespace can be made here: {error}", file=sys.stderr)
        sys.exit(NOT_ALLOWED)
    os.execvp(sys.argv[1], sys.argv[1:])
