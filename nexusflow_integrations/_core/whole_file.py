"""Writes a file that appears under its name only when it is complete."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_STREAMS = ("stdin", "stdout", "stderr")
_DESCRIPTOR = re.compile(r"/dev/(std(?:in|out|err))|/(?:dev|proc/self)/fd/(\d+)")
_OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def is_stream(path: Path) -> bool:
    """Return whether ``path`` is a device, a pipe or an open file, which is never replaced."""
    return _descriptor(path) is not None or (path.exists() and not path.is_file())


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that is renamed to ``path`` if the block succeeds, and removed if it fails.

    A killed process leaves ``NAME.PID.part`` behind, which cannot be mistaken for a result. If
    ``path`` is a symbolic link, the file that it leads to is replaced. If ``path`` is a stream
    (see ``is_stream``), it is written to directly.
    """
    if is_stream(path):
        number = _descriptor(path)
        # Opening a file by its name would truncate it if the shell appends to it.
        try:
            with open(path if number is None else os.dup(number), "wb") as stream:
                yield stream
        except OSError as error:
            error.filename = str(path)
            raise
        return
    target = Path(os.path.realpath(path))
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with part.open("w+b") as file:
            if target.exists():
                os.chmod(part, stat.S_IMODE(target.stat().st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except BaseException as error:
        with suppress(OSError):  # a folder that cannot be written
            part.unlink(missing_ok=True)
        if isinstance(error, OSError) and (
            error.filename == str(part) or (error.filename is None and error.errno in _OF_A_DISK)
        ):
            error.filename, error.filename2 = str(path), None
        raise


def _descriptor(path: Path) -> int | None:
    """Return the number of the open file that ``path`` names, as ``/dev/stdout`` does."""
    found = _DESCRIPTOR.fullmatch(os.path.abspath(path))
    if found is None:
        return None
    name, number = found.groups()
    return int(number) if number else _STREAMS.index(name)
