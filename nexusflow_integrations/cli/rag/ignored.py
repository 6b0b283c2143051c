"""Files that are not part of a corpus: ``node_modules``, and what ``.gitignore`` excludes."""

from __future__ import annotations

import codecs
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nexusflow_integrations._core.needed import needed
from nexusflow_integrations.cli.first_bytes import not_text

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

_FILE = ".gitignore"
_NEVER = frozenset({"node_modules"})
_CLASS = re.compile(r"\[:(alnum|alpha|blank|digit|lower|space|upper|xdigit):\]")
_STARS = re.compile(r"\A\*{3,}\Z")
_CLASSES = {
    "alnum": "a-zA-Z0-9",
    "alpha": "a-zA-Z",
    "blank": " \t",
    "digit": "0-9",
    "lower": "a-z",
    "space": " \t\v\f\r",
    "upper": "A-Z",
    "xdigit": "0-9a-fA-F",
}


class UnreadableRulesError(Exception):
    """A ``.gitignore`` cannot be read, so it is not known which files it excludes."""


class Ignored:
    """The rules for the files and folders under ``folder``.

    The rules come from the ``.gitignore`` files of the folder, its subfolders, and its parents up
    to the root of the repository. If a parent's rules ignore ``folder`` itself or a folder above
    it, the user named it on purpose, so only the folder's own rules apply.
    """

    def __init__(self, folder: Path) -> None:
        with needed("Reading a folder", "pathspec", install="nexusflow-integrations[cli]"):
            import pathspec

        self._parse = pathspec.GitIgnoreSpec.from_lines
        self._specs: dict[Path, list[GitIgnoreSpec]] = {}
        folder = folder.resolve()
        self._root = next(
            (path for path in (folder, *folder.parents) if (path / ".git").exists()), folder
        )
        inside = [path for path in (folder, *folder.parents) if path.is_relative_to(self._root)]
        if any(self(path, is_folder=True) for path in inside[:-1]):
            self._root = folder

    def __call__(self, path: Path, *, is_folder: bool) -> bool:
        """Return whether ``path`` is left out; its parent folder must not be left out.

        Raises:
            UnreadableRulesError: A ``.gitignore`` cannot be read.
        """
        if path.name in _NEVER:
            return True
        path = path.parent.resolve() / path.name  # for a link, its own place counts, not its target
        for parent in path.parents:
            name = _as_bytes(path.relative_to(parent).as_posix()) + "/" * is_folder
            for spec in self._rules(parent):
                if (found := _decision(spec, name)) is not None:
                    return found
            if parent == self._root:
                break
        return False

    def _rules(self, folder: Path) -> list[GitIgnoreSpec]:
        """Return the rules of the folder's ``.gitignore``, one in each spec, the last one first."""
        if folder not in self._specs:
            found = [self._rule(line) for line in _lines(_contents(folder))]
            self._specs[folder] = [spec for spec in reversed(found) if spec is not None]
        return self._specs[folder]

    def _rule(self, line: str) -> GitIgnoreSpec | None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of ``re``, about "[[a]"
            try:
                return self._parse([_spelled_out(line)])
            except (ValueError, re.error):  # such as a lone "!": git skips only this line, too
                return None


def _decision(spec: GitIgnoreSpec, name: str) -> bool | None:
    """Return whether a rule excludes or includes ``name`` itself, or says nothing about it.

    The specs of pathspec also match what is inside a folder that matches. That is wrong here: the
    folder was not left out, so a later rule must have included it.
    """
    for pattern in spec.patterns:
        if pattern.include is None or pattern.regex is None:
            continue  # a rule that git skips
        if found := pattern.regex.fullmatch(name):
            below = found.end(found.lastindex) < len(name) if found.lastindex else False
            return None if below else bool(pattern.include)
    return None


def _contents(folder: Path) -> bytes:
    """Return the contents of the folder's ``.gitignore``; nothing if there is none.

    Raises:
        UnreadableRulesError: It exists but cannot be read, so files that it excludes could be sent.
    """
    file = folder / _FILE
    try:
        if not file.is_file():
            return b""
        data = file.read_bytes()
    except OSError as error:
        if isinstance(error, PermissionError) and not os.access(folder, os.X_OK):
            return b""  # nothing in this folder can be read
        reason = error.strerror or type(error).__name__
    else:
        if b"\0" not in data:
            return data
        reason = not_text(data) or "binary"
    raise UnreadableRulesError(
        f"{str(file)!r} cannot be read, so it is not known which files to leave out: {reason}"
    )


def _as_bytes(name: str) -> str:
    """Return one character for each byte of ``name``: git compares bytes, in any encoding."""
    return os.fsencode(name).decode("latin-1")


def _lines(data: bytes) -> Iterator[str]:
    """Yield the rules of a ``.gitignore`` as git reads them."""
    for line in data.removeprefix(codecs.BOM_UTF8).split(b"\n"):
        whole = line.removesuffix(b"\r").decode("latin-1")
        rule = whole.rstrip(" ")
        if rule != whole and _ends_escaped(rule):
            rule += " "
        if rule and not rule.startswith("#"):
            yield rule


def _ends_escaped(rule: str) -> bool:
    """Return whether the last backslash of ``rule`` escapes the character after it."""
    return (len(rule) - len(rule.rstrip("\\"))) % 2 == 1


def _spelled_out(rule: str) -> str:
    """Return a rule that means to pathspec what ``rule`` means to git."""
    rule = _CLASS.sub(lambda found: _CLASSES[found[1]], rule)
    if rule[-1].isspace():  # pathspec would strip it; git strips only spaces, which are gone
        body = rule[:-2] if _ends_escaped(rule[:-1]) else rule[:-1]
        rule = f"{body}[{rule[-1]}]"
    if rule[0].isspace():  # pathspec 0.12 would strip it
        rule = f"[{rule[0]}]{rule[1:]}"
    sign = "!" if rule.startswith("!") else ""
    *parts, last = (_STARS.sub("**", part) for part in rule.removeprefix("!").split("/"))
    only_folders = "/" if parts and not last else ""
    if only_folders:
        last = parts.pop()
    if last == "**" and parts:  # what is inside a folder, but not the folder itself
        parts.append("**")
    if last in ("*", "**"):
        last = "?*"
    return f"{sign}{'/'.join([*parts, last])}{only_folders}"
