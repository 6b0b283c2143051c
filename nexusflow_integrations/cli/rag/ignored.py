"""Files that are not part of a corpus: ``node_modules``, and what ``.gitignore`` excludes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nexusflow_integrations._core.needed import needed

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

_FILE = ".gitignore"
_NEVER = frozenset({"node_modules"})


class Ignored:
    """The rules for the files and folders under ``folder``.

    The rules come from the ``.gitignore`` files of the folder, its subfolders, and its parents up
    to the root of the repository. If a parent's rules ignore ``folder`` itself, the user named it
    on purpose, so only the folder's own rules apply.
    """

    def __init__(self, folder: Path) -> None:
        with needed("Reading a folder", "pathspec", install="nexusflow-integrations[cli]"):
            import pathspec

        self._parse = pathspec.GitIgnoreSpec.from_lines
        self._specs: dict[Path, GitIgnoreSpec | None] = {}
        folder = folder.resolve()
        self._root = next(
            (path for path in (folder, *folder.parents) if (path / ".git").exists()), folder
        )
        if folder != self._root and self(folder, is_folder=True):
            self._root = folder

    def __call__(self, path: Path, *, is_folder: bool) -> bool:
        """Return whether ``path`` is left out; its parent folder must not be left out."""
        if path.name in _NEVER:
            return True
        path = path.parent.resolve() / path.name  # for a link, its own place counts, not its target
        for parent in path.parents:
            spec = self._spec(parent)
            if spec is not None:
                name = path.relative_to(parent).as_posix()
                found = spec.check_file(f"{name}/" if is_folder else name).include
                if found is not None:
                    return found
            if parent == self._root:
                break
        return False

    def _spec(self, folder: Path) -> GitIgnoreSpec | None:
        if folder not in self._specs:
            try:
                lines = (folder / _FILE).read_text("utf-8", "replace").splitlines()
                self._specs[folder] = self._parse(lines)
            except (OSError, ValueError):  # no such file, or an invalid pattern
                self._specs[folder] = None
        return self._specs[folder]
