"""Indexes on disk: each is a folder with a Chroma folder and a description, ``index.json``.

The description names the Chroma folder in use. A rebuild fills a second Chroma folder and then
replaces the description, so exactly one of the two folders is in use at any moment.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from nexusflow_integrations._core.cache.file import default_path
from nexusflow_integrations._core.models import DEFAULT_MODEL
from nexusflow_integrations._core.needed import needed
from nexusflow_integrations.cli.rag.corpus import SAMPLES
from nexusflow_integrations.cli.rag.endpoint import Endpoint
from nexusflow_integrations.cli.words import in_bytes

_ABOUT = "index.json"
_LOCK = "index.lock"
_ATTEMPTS = 10
"""Attempts at making and locking a folder that another process removes."""
_PREFIX = "chroma-"
_LEAST_FREE = 10_000_000
"""Bytes that a disk should have free; with less, an error is taken for a lack of space."""
_NAME_BYTES = 100
"""Maximum length of a corpus's name in a folder's name, of which file systems allow 255 bytes."""


class UnusableIndexError(Exception):
    """The index cannot be used now; the message is one sentence."""


class NoIndexError(UnusableIndexError):
    """No index, or more than one, has the given name."""


@dataclass(frozen=True)
class About:
    """The description of an index.

    Attributes:
        corpus: ``stdlib``, ``topics``, or the absolute path of a folder or file.
        title: A description of the corpus for readers.
        frameworks: Short names of the frameworks that `ask` and `search` use by default.
        endpoint: Name of the endpoint that made the vectors.
        local_model: The model of the local server, or ``None`` for the service.
        base_url: Root of the service's API; ``None`` for the local server.
        dimensions: The requested size, or ``None``.
        documents: Number of documents.
        folder: Name of the Chroma folder in use.
        hybrid: Whether `ask` and `search` use keywords by default, too.
        tuned: The settings from the file that was given when the index was made, if any.
        complete: Whether the whole corpus was indexed; false if ``--limit`` left out some, and no
            run without it followed.
    """

    corpus: str
    title: str
    frameworks: tuple[str, ...]
    endpoint: str
    local_model: str | None
    base_url: str | None
    dimensions: int | None
    documents: int
    folder: str
    hybrid: bool = False
    tuned: dict[str, Any] | None = None
    complete: bool = True

    @property
    def model(self) -> str:
        """Name of the model that made the vectors."""
        return self.local_model or DEFAULT_MODEL


@dataclass(frozen=True)
class Index:
    """An index: a folder with Chroma's files and ``index.json``."""

    directory: Path

    @property
    def name(self) -> str:
        """The name of the index, such as ``stdlib@minilm-use-gated``."""
        return self.directory.name

    @property
    def chroma(self) -> Path:
        """The folder that Chroma's ``PersistentClient`` opens.

        Raises:
            UnusableIndexError: The index was never finished, or its description is damaged.
        """
        return self.directory / self.about().folder

    @property
    def size(self) -> int:
        """Size on disk, in bytes."""
        total = 0
        for folder, _, files in os.walk(self.directory):
            for name in files:
                with suppress(OSError):  # another process is updating the index
                    total += os.stat(os.path.join(folder, name)).st_size
        return total

    @property
    def used(self) -> float:
        """Time of last use, in seconds since 1970; 0 if the index was never finished."""
        with suppress(OSError):
            return (self.directory / _ABOUT).stat().st_mtime
        return 0.0

    def about(self) -> About:
        """Return the description.

        Raises:
            UnusableIndexError: The index was never finished, or its description is damaged.
        """
        found = self._read()
        if isinstance(found, About):
            return found
        if self._is_being_built():
            raise UnusableIndexError(
                f"another process is building the index {self.name!r}: run this again when it is"
                " done"
            )
        raise UnusableIndexError(
            f"the index {self.name!r} {found}: run `nexusflow index` on its texts again, or"
            f" `nexusflow indexes remove {self.name}`"
        )

    def _read(self) -> About | str:
        """Return the description, or what is wrong with the index.

        Raises:
            UnusableIndexError: You may not read the description.
        """
        try:
            found = json.loads((self.directory / _ABOUT).read_text("utf-8"))
            about = About(**{**found, "frameworks": tuple(found["frameworks"])})
            if about.folder not in {path.name for path in self._folders()}:
                raise FileNotFoundError(about.folder)
        except FileNotFoundError:
            return "was never finished"
        except PermissionError as error:
            raise UnusableIndexError(
                f"the index {self.name!r} cannot be read: {error.filename}: {error.strerror}"
            ) from None
        except (OSError, ValueError, TypeError, KeyError):
            return "is damaged"
        return about

    def _is_being_built(self) -> bool:
        """Return whether a process holds the lock; ``False`` if that is not known."""
        if not (self.directory / _LOCK).exists():
            return False
        try:
            from filelock import FileLock, Timeout
        except ImportError:
            return False
        try:
            # This takes the lock for an instant, so do it only if there is nothing to read.
            FileLock(self.directory / _LOCK, timeout=0).acquire().lock.release()
        except Timeout:
            return True
        except OSError:
            pass
        return False

    def described(self) -> About | None:
        """Return the description, or ``None`` if the index cannot be used."""
        try:
            found = self._read()
        except UnusableIndexError:
            return None
        return found if isinstance(found, About) else None

    def rebuilding(self) -> str:
        """Return the command that builds the index again."""
        about = self.described()
        if about is None:
            return "nexusflow index PATH --fresh"
        options = " --local" if about.local_model else ""
        if about.tuned is not None:
            options += " --settings FILE"
        elif about.dimensions:
            options += f" --dimensions {about.dimensions}"
        return f"nexusflow index {shlex.quote(about.corpus)}{options} --fresh"

    def damaged(self, reason: str) -> UnusableIndexError:
        """Return the error for an index whose Chroma folder cannot be read."""
        if "disk is full" in reason:
            return UnusableIndexError(
                f"the index {self.name!r} cannot be written: the disk of {self.directory} is full"
            )
        said = f"the index {self.name!r} cannot be read ({reason})"
        if obstacle := self.obstacle():
            return UnusableIndexError(f"{said}: {obstacle}")
        return UnusableIndexError(f"{said}: build it again with `{self.rebuilding()}`")

    def obstacle(self) -> str:
        """Return why Chroma cannot write here, which it must even to search; empty if it can."""
        paths = [
            self.directory,
            *(file for folder in self._folders() for file in folder.rglob("*")),
        ]
        closed = next((path for path in paths if not os.access(path, os.W_OK)), None)
        if closed is not None:
            return (
                f"Chroma must write to its files even to search, and you may not write to {closed}:"
                " get write permission, or use an index of your own with --store"
            )
        with suppress(OSError):
            if (free := shutil.disk_usage(self.directory).free) < _LEAST_FREE:
                return (
                    f"the disk of {self.directory} has only {in_bytes(free)} free: free some more"
                    " and run this again"
                )
        return ""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from writing to the index; the lock ends with the process.

        Raises:
            UnusableIndexError: Another process is writing to the index, or it cannot be written.
        """
        with needed("An index", "filelock", install="nexusflow-integrations[chroma]"):
            from filelock import FileLock, Timeout

        lock = FileLock(self.directory / _LOCK, timeout=0)
        for attempt in count(1):
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                lock.acquire()
                break
            except Timeout:
                raise UnusableIndexError(
                    f"another process is updating the index {self.name!r}: run this again when it"
                    " is done"
                ) from None
            except (FileNotFoundError, FileExistsError):
                # A first run that failed has just removed the folder.
                if attempt == _ATTEMPTS:
                    raise
            except OSError as error:
                place, problem = error.filename or self.directory, error.strerror or error
                raise UnusableIndexError(
                    f"the index {self.name!r} cannot be written: {place}: {problem}; name another"
                    " folder with --store"
                ) from None
        try:
            yield
        finally:
            lock.release()

    def draft(self, *, fresh: bool) -> str:
        """Return the name of the Chroma folder to write to; the caller holds ``alone``.

        It is the folder in use, or the folder of a first run that was stopped. With ``fresh``, or
        if the description is damaged, it is a new folder.
        """
        about = self.described()
        if about is not None:
            self._clean(about.folder)  # remove the folder of a rebuild that was stopped
        kept = self.kept
        if kept is not None and not fresh:
            return kept.name
        folders = self._folders()
        return f"{_PREFIX}{1 + (_number(folders[-1]) if folders else 0)}"

    @property
    def kept(self) -> Path | None:
        """The Chroma folder that an update continues: in use, or left by a stopped first run."""
        if (about := self.described()) is not None:
            return self.directory / about.folder
        folders = self._folders()
        return folders[-1] if folders and not (self.directory / _ABOUT).exists() else None

    def describe(self, about: About) -> None:
        """Write the description atomically; remove Chroma folders no longer in use."""
        self.directory.mkdir(parents=True, exist_ok=True)
        draft = self.directory / f"{_ABOUT}.{os.getpid()}"
        draft.write_text(json.dumps(asdict(about), ensure_ascii=False, indent=2), "utf-8")
        os.replace(draft, self.directory / _ABOUT)
        self._clean(about.folder)

    def touch(self) -> None:
        """Record that the index was used, which makes it the default of the next command."""
        # Only the owner may set the time of a file; others may be allowed to write and search.
        with suppress(OSError):
            os.utime(self.directory / _ABOUT)  # unlike touch(), creates no file

    def is_replaced(self, folder: Path) -> bool:
        """Return whether another process has replaced the Chroma folder that was in use.

        Raises:
            UnusableIndexError: The index was removed, or its description is damaged.
        """
        if not (self.directory / _ABOUT).exists():
            raise UnusableIndexError(
                f"the index {self.name!r} has just been removed: run `nexusflow index` on its texts"
                " again"
            )
        return self.chroma != folder

    def remove(self) -> None:
        """Delete the files of the index, and its folder if nothing else is in it.

        Raises:
            UnusableIndexError: Another process is writing to the index, or it cannot be written.
        """
        if not self.directory.is_dir():
            return
        with self.alone():
            # Remove the description first: an index without one is not used.
            (self.directory / _ABOUT).unlink(missing_ok=True)
            for folder in self._folders():
                shutil.rmtree(folder)
        self.remove_if_empty()

    def remove_if_empty(self) -> None:
        """Delete what is left of an index without description and Chroma folder."""
        if (self.directory / _ABOUT).exists() or self._folders():
            return
        with suppress(OSError):
            (self.directory / _LOCK).unlink(missing_ok=True)
            self.directory.rmdir()

    @property
    def state(self) -> str:
        """``usable``, ``building``, ``damaged``, or ``unfinished`` if the first run did not end.

        ``building`` means that another process builds an index that cannot be used yet.
        """
        if self.described() is not None:
            return "usable"
        if self._is_being_built():
            return "building"
        return "damaged" if (self.directory / _ABOUT).exists() else "unfinished"

    def _folders(self) -> list[Path]:
        found = [path for path in self.directory.glob(f"{_PREFIX}*") if _number(path)]
        return sorted(found, key=_number)

    def _clean(self, kept: str) -> None:
        for folder in self._folders():
            if folder.name != kept:
                # A folder that is still in use is removed next time.
                shutil.rmtree(folder, ignore_errors=True)


def _number(folder: Path) -> int:
    digits = folder.name.removeprefix(_PREFIX)
    return int(digits) if digits.isdecimal() else 0


_NO_INDEX = "there is no index yet: run `nexusflow demo` or `nexusflow index FOLDER` first"


class Indexes:
    """The indexes under one folder; by default in the user's cache folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_path().parent / "indexes"

    def place(self, corpus: str, name: str, endpoint: Endpoint) -> Index:
        """Return the index of a corpus; the index may not exist yet.

        Vectors of different models or sizes never share an index.

        Args:
            corpus: ``stdlib``, ``topics`` or a path.
            name: The corpus's short name.
            endpoint: Where the corpus is embedded.
        """
        if corpus not in SAMPLES:
            short = name.encode()[:_NAME_BYTES].decode(errors="ignore")
            name = f"{short}-{_digits(corpus)}"
        return Index(self.folder / f"{name}@{endpoint.name}")

    def all(self) -> list[Index]:
        """Return all indexes, including unusable ones, most recently used first."""
        found = {
            file.parent
            for part in (_ABOUT, f"{_PREFIX}*")
            for file in self.folder.glob(f"*/{part}")
        }
        return sorted(map(Index, found), key=lambda index: index.used, reverse=True)

    def find(
        self,
        name: str | None = None,
        near: Path | None = None,
        prefer: Callable[[About], bool] = lambda _: True,
        *,
        unusable: bool = False,
    ) -> Index:
        """Return the index whose name equals or begins with ``name``.

        Without a name, return the index of the nearest folder that contains ``near``; if there is
        none, any index. If several fit, return the most recently used one that ``prefer`` accepts,
        or else the most recently used one. If that one was made with ``--limit``, return a complete
        one of the same corpus, if there is one for which ``prefer`` gives the same answer.
        Unusable indexes are skipped, unless only they fit a name, or ``unusable`` counts them like
        the others.

        Raises:
            NoIndexError: There is no such index, several names begin with ``name``, or it is empty.
        """
        if name == "":  # such as an unset variable of a shell, which must not remove an index
            raise NoIndexError("the name of the index is empty")
        indexes = self.all()
        if name is None:
            usable = [(index, about) for index in indexes if (about := index.described())]
            nearest = max((_nearness(about.corpus, near) for _, about in usable), default=0)
            if unfinished := _unfinished(indexes, near, nearest):
                unfinished.about()  # raises: an index of another folder would answer instead
            if not usable:
                raise NoIndexError(_none_usable(indexes))
            fit = [pair for pair in usable if _nearness(pair[1].corpus, near) == nearest]
            liked = [pair for pair in fit if prefer(pair[1])] or fit
            corpus = liked[0][1].corpus
            whole = [index for index, about in liked if about.complete and about.corpus == corpus]
            return whole[0] if whole and not liked[0][1].complete else liked[0][0]
        exact = [index for index in indexes if index.name == name]
        alike = exact or [index for index in indexes if index.name.startswith(name)]
        if not unusable:
            alike = [index for index in alike if index.described()] or alike
            preferred = [one for one in alike if (about := one.described()) and prefer(about)]
            alike = preferred if len(preferred) == 1 else alike
        if len(alike) == 1:
            return alike[0]
        if not indexes:
            raise NoIndexError(_NO_INDEX)
        names = ", ".join(index.name for index in (alike or indexes))
        if alike:
            raise NoIndexError(f"the names of several indexes begin with {name!r}: {names}")
        raise NoIndexError(f"there is no index named {name!r}; the indexes are: {names}")


def _none_usable(indexes: Sequence[Index]) -> str:
    unfinished = [index.name for index in indexes if index.state == "unfinished"]
    if not unfinished:
        return _NO_INDEX
    command = "`nexusflow index`"
    if unfinished[0].partition("@")[0] in SAMPLES:
        command = "`nexusflow demo` or `nexusflow index`"
    return (
        f"there is no index yet: the first run for {unfinished[0]} did not end; run the same"
        f" {command} command again, which continues it"
    )


def _digits(path: str | Path) -> str:
    """Return digits that distinguish a folder or file from others with the same name."""
    whole = os.path.realpath(path).encode("utf-8", "surrogateescape")
    return hashlib.sha256(whole).hexdigest()[:6]


def _unfinished(indexes: Sequence[Index], near: Path | None, nearest: int) -> Index | None:
    """Return an unusable index of a folder that contains ``near`` and is nearer than others."""
    folders = [] if near is None else [Path(os.path.realpath(near))]
    for folder in [*folders, *(above for one in folders for above in one.parents)]:
        if 1 + len(folder.parts) <= nearest:
            return None
        mark = f"-{_digits(folder)}@"
        found = [one for one in indexes if mark in one.name and one.described() is None]
        if found:
            return found[0]
    return None


def _nearness(corpus: str, near: Path | None) -> int:
    """Return how close the folder ``corpus`` is to ``near``; 0 if unrelated."""
    if near is None or not os.path.isabs(corpus):
        return 0
    here, there = Path(os.path.realpath(near)), Path(corpus)
    if here == there or there in here.parents:
        return 1 + len(there.parts)
    return 0
