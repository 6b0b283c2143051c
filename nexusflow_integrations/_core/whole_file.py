"""Writes a file that appears under its name only when it is complete."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that is renamed to ``path`` if the block succeeds, and removed if it fails.

    A killed process leaves ``NAME.PID.part`` behind, which cannot be mistaken for a result. If
    ``path`` is a symbolic link, the file that it leads to is replaced. A device or a named pipe is
    not replaced but written to.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        with target.open("wb") as file:
            yield file
        return
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with part.open("w+b") as file:
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
