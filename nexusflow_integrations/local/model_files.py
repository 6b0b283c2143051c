"""Finds model files inside installed packages and checks their hashes.

Nothing is downloaded, and the packages are not imported.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata, util
from pathlib import Path

_INSTALL = 'pip install "nexusflow-integrations[local]"'


class ModelFileError(RuntimeError):
    """A model file is missing from its package, or does not have the expected hash."""


@dataclass(frozen=True)
class ModelFile:
    """One file inside an installed distribution.

    Args:
        distribution: The name of the distribution on PyPI.
        version: The version whose file has the hash.
        path: The file's path inside the distribution.
        sha256: The file's hash, in hex.
    """

    distribution: str
    version: str
    path: str
    sha256: str

    def verify(self, used: str) -> Path:
        """Find the file and check its hash, unless the hash was checked before.

        Args:
            used: Name, for messages, of what needs the file.

        Raises:
            ImportError: The distribution is not installed.
            ModelFileError: the distribution does not contain the file, or the hash is wrong.
        """
        try:
            found = metadata.distribution(self.distribution)
        except metadata.PackageNotFoundError:
            raise missing(used, self.distribution) from None
        path = Path(str(found.locate_file(self.path)))
        cure = f'Run: pip install --force-reinstall "{self.distribution}=={self.version}"'
        if not path.is_file():
            raise ModelFileError(
                f"{used} needs {self.path} of {self.distribution} {self.version}, but the "
                f"installed version {found.version} does not contain it. {cure}"
            )
        state = path.stat()
        got = _sha256(path, state.st_mtime_ns, state.st_size)
        if got != self.sha256:
            raise ModelFileError(
                f"{used} needs {self.path} of {self.distribution} {self.version} with sha256 "
                f"{self.sha256}; {path} (of version {found.version}) has {got}. {cure}"
            )
        return path


@lru_cache(maxsize=64)
def _sha256(path: Path, mtime_ns: int, size: int) -> str:
    del mtime_ns, size  # part of the cache key, so that a changed file is read again
    return hashlib.sha256(path.read_bytes()).hexdigest()


def need(used: str, *modules: str) -> None:
    """Check that modules can be imported, without importing them.

    Args:
        used: Name, for the message, of what needs the modules.
        modules: Top-level module names.

    Raises:
        ImportError: A module is missing; the message says how to install it.
    """
    for module in modules:
        if util.find_spec(module) is None:
            raise missing(used, module)


def missing(used: str, what: str) -> ImportError:
    """Return the error for a missing package."""
    return ImportError(f"{used} needs {what}, which is not installed. Run: {_INSTALL}", name=what)
