"""Makes paths absolute; errors say what to do without a home folder or a current folder."""

from __future__ import annotations

import os

from nexusflow_integrations.errors import ConfigurationError


def absolute(name: str, path: str) -> str:
    """Return ``path`` as an absolute path in which ``~`` is replaced by the home folder.

    Raises:
        ConfigurationError: There is no home folder or no current folder. The message begins with
            ``name``, the name of the setting.
    """
    expanded = os.path.expanduser(path)
    if expanded == path and path[:1] == "~" and path[1:2] in ("", "/", os.sep):
        raise ConfigurationError(
            f"{name} must be an absolute path, because this user has no home folder"
        )
    # Use getcwdb, not abspath or getcwd: tools that detect blocking calls on an event loop raise an
    # error for both, although reading the current folder takes a microsecond.
    # Before Python 3.13, isabs on Windows also accepts a path without a drive.
    if not os.path.isabs(expanded) or (os.name == "nt" and not os.path.splitdrive(expanded)[0]):
        try:
            folder = os.fsdecode(os.getcwdb())
        except OSError as error:
            raise ConfigurationError(
                f"{name} must be an absolute path, because the current folder cannot be read:"
                f" {error.strerror or error}"
            ) from None
        expanded = os.path.join(folder, expanded)
    return os.path.normpath(expanded)
