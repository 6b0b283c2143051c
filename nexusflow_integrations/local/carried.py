"""Files that other packages carry: found, and known to be the ones expected.

Nothing is downloaded and nothing of those packages is imported to find a file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

_INSTALL = 'pip install "nexusflow-integrations[local]"'


class ModelFileError(RuntimeError):
    """A model's file is absent from its package or is not the one that was measured."""


@dataclass(frozen=True)
class CarriedFile:
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

    def locate(self, used: str) -> Path:
        """Find the file.

        Args:
            used: What needs it, for the message.

        Raises:
            ImportError: the distribution is not installed.
            ModelFileError: it is installed and does not have the file.
        """
        try:
            found = metadata.distribution(self.distribution)
        except metadata.PackageNotFoundError:
            raise _missing(used, self.distribution) from None
        path = Path(str(found.locate_file(self.path)))
        if not path.is_file():
            raise ModelFileError(
                f"{self.path} is not in {self.distribution} {found.version}; "
                f"version {self.version} has it: "
                f'pip install --force-reinstall "{self.distribution}=={self.version}"'
            )
        return path

    def read(self, used: str) -> bytes:
        """Read the file and check its hash.

        Args:
            used: What needs it, for messages.

        Raises:
            ImportError: the distribution is not installed.
            ModelFileError: the file is absent or its hash is another.
        """
        path = self.locate(used)
        content = path.read_bytes()
        got = hashlib.sha256(content).hexdigest()
        if got != self.sha256:
            installed = metadata.version(self.distribution)
            raise ModelFileError(
                f"{path} is not the file that {used} expects: {self.path} of "
                f"{self.distribution} {self.version} has sha256 {self.sha256}, this one "
                f"(installed: {installed}) has {got}. "
                f'Type: pip install --force-reinstall "{self.distribution}=={self.version}"'
            )
        return content


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
            raise _missing(used, module)


def _missing(used: str, missing: str) -> ImportError:
    return ImportError(
        f"{used} needs {missing}, which is not installed. Type: {_INSTALL}",
        name=missing,
    )
