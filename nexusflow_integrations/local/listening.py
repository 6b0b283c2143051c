"""Opens the port of a server."""

from __future__ import annotations

import errno
import os
import socket


class CannotListenError(OSError):
    """The server cannot listen: the port is in use or not permitted, or the host is wrong.

    ``errno`` is that of the system's error, and the message is one sentence.
    """

    def __str__(self) -> str:
        return str(self.strerror)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        CannotListenError: The port is in use or needs more privileges, or the host is not an
            address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            # On Windows, this option would let two servers share one port.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except BaseException as error:
        listener.close()
        if isinstance(error, OSError) and (why := _why(host, port, error)):
            raise CannotListenError(error.errno, why) from None
        raise
    return listener


def _why(host: str, port: int, error: OSError) -> str | None:
    """Return what to do about an error; ``None`` if another port or host would not help."""
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use: choose another port, or 0 for a free one"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} of {host} needs more privileges: choose a port above 1023"
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"cannot listen on port {port} of {host}: {error.strerror}"
    return None
