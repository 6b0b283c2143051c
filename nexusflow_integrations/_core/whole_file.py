"""Writes a file that appears under its name only when it is complete."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that is renamed to ``path`` if the block succeeds, and removed if it fails.

    A killed process leaves ``NAME.PID.part`` behind, which cannot be mistaken for a result.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _OF_A_DISK and error.filename is None:
            error.filename = str(path)
        raise
