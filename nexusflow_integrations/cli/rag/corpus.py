"""The texts to search: the standard library's docstrings, its reference topics, or a folder.

The first two are part of Python, so nothing is downloaded. The lists below name the modules;
modules and names that the running version of Python lacks are skipped.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType

from nexusflow_integrations._core.counts import count
from nexusflow_integrations._core.texts import is_blank, is_encodable
from nexusflow_integrations._core.tuned import TunedSettings
from nexusflow_integrations.cli.first_bytes import not_text
from nexusflow_integrations.cli.rag.converted import (
    CONVERTED,
    INSTALL,
    JSON,
    ROWS,
    TABLES,
    NotConvertedError,
    can_convert,
    decoded,
    markdown,
    rows,
)
from nexusflow_integrations.cli.rag.ignored import Ignored, UnreadableRulesError
from nexusflow_integrations.cli.rag.passages import cut, first_part
from nexusflow_integrations.cli.words import is_address

# fmt: off
EVERYDAY = (
    "bisect", "builtins", "calendar", "collections", "copy", "csv", "datetime", "difflib",
    "fnmatch", "functools", "getpass", "glob", "gzip", "hashlib", "heapq", "html", "itertools",
    "json", "math", "os.path", "pathlib", "random", "re", "secrets", "shutil", "statistics",
    "string", "subprocess", "tempfile", "textwrap", "time", "timeit", "urllib.parse", "uuid",
    "webbrowser", "zipfile",
)
"""Modules that everyday scripts use. Their docstrings come first: a limit of 500 selects them."""

FURTHER = (
    "argparse", "asyncio", "base64", "cmath", "codecs", "colorsys", "configparser",
    "contextlib", "dataclasses", "decimal", "email.message", "enum", "filecmp", "fileinput",
    "fractions", "ftplib", "hmac", "http.client", "http.server", "imaplib", "inspect", "io",
    "ipaddress", "linecache", "locale", "logging", "lzma", "mimetypes", "multiprocessing",
    "operator", "os", "pickle", "platform", "pprint", "queue", "sched", "select", "shelve",
    "shlex", "signal", "smtplib", "socket", "sqlite3", "struct", "sys", "tarfile", "threading",
    "traceback", "unicodedata", "unittest", "urllib.request", "warnings", "wave", "weakref",
    "xml.etree.ElementTree", "zlib", "zoneinfo",
)
"""Modules whose docstrings follow, if the limit is larger."""
# fmt: on

KINDS = {
    **dict.fromkeys((".md", ".markdown"), "md"),
    ".mdx": "mdx",
    **dict.fromkeys((".adoc", ".asciidoc"), "adoc"),
    ".rst": "rst",
    ".org": "org",
    ".py": "py",
    ".txt": "plain",
}
"""How headings are marked in text files, by suffix."""
_LARGEST_FILE = 10_000_000
_LINE = re.compile(r":\d+$")
_SIGNATURE = re.compile(r"[\w.]+\(.*\)(\s*->.*)?")
_TOPIC = re.compile(r"help\('.*'\)")
SAMPLES = ("stdlib", "topics")
"""Corpora that have a name instead of a path."""
_FEWEST_CHARACTERS = 15
_DEFAULT = TunedSettings()
_KINDS_SHOWN = 5
_IGNORED = ""
_OUTSIDE = "/"
_OWN = "own"
"""Keys that are not suffixes: files excluded by ``.gitignore``, links that leave the folder, and
pages that this package wrote."""
_PAGES = (".html", ".htm")
_GENERATOR = b'<meta name="generator" content="nexusflow-integrations">'
_LINK = "a link that leads out of the folder"


class CorpusError(Exception):
    """The corpus is empty or cannot be read; the message is one sentence."""


@dataclass(frozen=True)
class Document:
    """One passage.

    Attributes:
        text: The text that is embedded.
        source: Where the text comes from, for readers: ``random.shuffle``, ``a.md:12``.
        url: Where to read more, or an empty string.
        also_in: Further files that contain the passage, without line numbers.
    """

    text: str
    source: str
    url: str = ""
    also_in: tuple[str, ...] = ()

    @cached_property
    def id(self) -> str:
        """A hash of source and text, as 24 hexadecimal digits."""
        return hashlib.sha256(f"{self.source}\0{self.text}".encode()).hexdigest()[:24]

    @property
    def origin(self) -> str:
        """The file that contains the passage, without the line number."""
        return _LINE.sub("", self.source)

    @property
    def origins(self) -> tuple[str, ...]:
        """All files that contain the passage."""
        return (self.origin, *self.also_in)


@dataclass(frozen=True)
class Skipped:
    """A file or passage that was left out.

    Attributes:
        source: ``a.md:12``, or ``a.md`` for the whole file.
        reason: Why it was left out, in a few words.
    """

    source: str
    reason: str

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


@dataclass(frozen=True)
class Corpus:
    """Documents with distinct texts, and their description.

    Attributes:
        name: Short name, safe in a file name.
        title: A description for readers.
        documents: The passages, in a fixed order.
        skipped: Files and folders that could not be read, with the reason.
        passed_by: Files of a type that cannot be read without another package, and links that leave
            the folder. They are left out without being named, unless they were read before.
        complete: Whether all documents are here; false if a limit left out some.
        others: A line about files of other types, or an empty string.
        limited: Whether the user's own limit left out some; the default limit of ``stdlib`` does
            not count.
    """

    name: str
    title: str
    documents: tuple[Document, ...]
    skipped: tuple[Skipped, ...] = ()
    complete: bool = True
    others: str = ""
    passed_by: tuple[Skipped, ...] = ()
    limited: bool = False

    def could_not_read(self, origin: str) -> bool:
        """Return whether the file ``origin``, or a folder that contains it, could not be read."""
        return "." in self._unread or any(name in self._unread for name in _with_parents(origin))

    def left_out(self, known: Iterable[Document]) -> tuple[Skipped, ...]:
        """Return what could not be read, including what was read when ``known`` was indexed."""
        origins = {
            name
            for origin in {origin for item in known for origin in item.origins}
            for name in _with_parents(origin)
        }
        return (*self.skipped, *(item for item in self.passed_by if item.source in origins))

    @cached_property
    def _unread(self) -> frozenset[str]:
        return frozenset(item.source for item in (*self.skipped, *self.passed_by))


def _with_parents(origin: str) -> Iterator[str]:
    """Yield ``a/b.md`` and ``a``."""
    while origin:
        yield origin
        origin = origin.rpartition("/")[0]


def load(name: str, limit: int | None = None, tuned: TunedSettings = _DEFAULT) -> Corpus:
    """Return the corpus ``name``: ``stdlib``, ``topics``, or the path of a folder or file.

    Args:
        name: Name or path. Write ``./stdlib`` for a folder with the name of a corpus.
        limit: Maximum number of documents, from the beginning; ``None`` means 500 for ``stdlib``
            and all for others.
        tuned: Settings that say how to cut the texts.

    Raises:
        CorpusError: The path does not exist or contains nothing to index.
    """
    if name == "stdlib":
        found = stdlib(500 if limit is None else limit)
    elif name == "topics":
        found = topics(limit, tuned)
    else:
        found = folder(_path(name), limit, tuned)
    return replace(found, limited=limit is not None and not found.complete)


def check_clear(name: str) -> None:
    """Refuse the name of a sample that is also a folder or a file here: it may be meant.

    Raises:
        CorpusError: It is not clear what is meant.
    """
    if name in SAMPLES and os.path.lexists(name):
        raise CorpusError(
            f"{name!r} is both a sample and a path in this folder: write ./{name} for the path, or"
            " run the command in another folder for the sample"
        )


def whole(name: str) -> tuple[list[tuple[str, str]], tuple[Skipped, ...]]:
    """Return the uncut texts of the corpus ``name`` with their sources.

    Each row of a table or of JSON is a text with a source of its own, such as ``a.csv:2``. The
    docstrings are those of ``stdlib``. The second list holds what could not be read.

    Raises:
        CorpusError: The path does not exist or contains no readable text.
    """
    if name == "stdlib":
        return [(item.source, item.text) for item in stdlib().documents], ()
    if name == "topics":
        return [(f"help({topic!r})", text) for topic, text in sorted(_topics().items())], ()
    path = _path(name)
    _check_path(path)
    skipped: list[Skipped] = []
    others: Counter[str] = Counter()
    base = path if path.is_dir() else path.parent
    files = _text_files(path, skipped, others, []) if path.is_dir() else [path]
    texts = [
        (f"{source}:{row}" if row else source, text)
        for file in files
        for source in [file.relative_to(base).as_posix()]
        for row, text in _texts(file, source, skipped)
        if text.strip()
    ]
    if not texts:
        raise CorpusError(_nothing(path, files, skipped, _others(others)))
    return texts, tuple(skipped)


# -- the standard library ----------------------------------------------------------------------


def stdlib(limit: int | None = 500) -> Corpus:
    """Return docstrings of public functions and classes: name, and the first 400 characters.

    Raises:
        CorpusError: This Python was started without docstrings.
    """
    if sys.flags.optimize >= 2:
        raise CorpusError(
            "this Python runs with -OO, which drops the docstrings: use topics instead of stdlib"
        )
    documents, complete = _front(_docstrings([*EVERYDAY, *FURTHER]), limit)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    title = f"{count(len(documents), 'docstring')} of Python {version}'s standard library"
    return Corpus("stdlib", title, documents, complete=complete)


def _docstrings(modules: Iterable[str]) -> Iterator[Document]:
    for name in modules:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue  # this Python version does not have the module
        for public in _public_names(module):
            document = _docstring(name, public, getattr(module, public, None))
            if document is not None:
                yield document


def _public_names(module: ModuleType) -> list[str]:
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            name
            for name, value in vars(module).items()
            # Without __all__, a module's imports look like its own names; _bisect is the C part of
            # bisect.
            if getattr(value, "__module__", None) in (None, module.__name__, f"_{module.__name__}")
        ]
    return sorted({name for name in names if not name.startswith("_")})


def _docstring(module: str, name: str, thing: object) -> Document | None:
    if not (inspect.isroutine(thing) or inspect.isclass(thing)):
        return None
    if inspect.isclass(thing) and issubclass(thing, BaseException):
        return None
    doc = inspect.getdoc(thing) or ""
    lines = doc.partition(">>>")[0].splitlines()  # leave out the examples
    while lines and (not lines[0].strip() or _SIGNATURE.fullmatch(lines[0].strip())):
        lines.pop(0)  # leave out the signature: only the description answers questions
    doc = first_part("\n".join(lines).strip(), 400)
    if len(doc) < _FEWEST_CHARACTERS:
        return None
    source = name if module == "builtins" else f"{module}.{name}"
    return Document(f"{source}: {doc}", source, _docs_url(module, name))


def _docs_url(module: str, name: str) -> str:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    root = f"https://docs.python.org/{version}/library"
    return (
        f"{root}/functions.html#{name}"
        if module == "builtins"
        else (f"{root}/{module.lower()}.html#{module}.{name}")
    )


# -- the language reference ---------------------------------------------------------------------


def topics(limit: int | None = None, tuned: TunedSettings = _DEFAULT) -> Corpus:
    """Return the reference topics that ``help()`` shows, as passages of at most 800 characters.

    Raises:
        CorpusError: This Python was installed without the reference topics.
    """
    documents, complete = _front(_topic_passages(_topics(), tuned), limit)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    title = f"{count(len(documents), 'passage')} of Python {version}'s reference"
    return Corpus("topics", title, documents, complete=complete)


def _topics() -> dict[str, str]:
    try:
        from pydoc_data import topics as data
    except ImportError:
        raise CorpusError(
            "this Python was installed without pydoc_data: use stdlib instead of topics"
        ) from None
    found: dict[str, str] = data.topics
    return found


def _topic_passages(all_topics: dict[str, str], tuned: TunedSettings) -> Iterator[Document]:
    for topic, text in sorted(all_topics.items()):
        for _, passage in _cut(text, tuned, "rst"):
            yield Document(passage, f"help({topic!r})")


# -- a folder -----------------------------------------------------------------------------------


def folder(path: Path, limit: int | None = None, tuned: TunedSettings = _DEFAULT) -> Corpus:
    """Return the text files under ``path``, cut into passages of at most 800 characters.

    Hidden files and folders, ``node_modules``, files that ``.gitignore`` excludes, and files that
    cannot be read are left out.

    Raises:
        CorpusError: The path does not exist or contains no readable text.
    """
    _check_path(path)
    skipped: list[Skipped] = []
    passed_by: list[Skipped] = []
    others: Counter[str] = Counter()
    base = path if path.is_dir() else path.parent
    files = _text_files(path, skipped, others, passed_by) if path.is_dir() else [path]
    documents, complete = _front(_file_passages(files, base, skipped, tuned), limit)
    left_out = _others(others)
    if not documents:
        raise CorpusError(_nothing(path, files, skipped, left_out))
    name = re.sub(r"[^\w.-]+", "-", path.resolve().stem if path.is_file() else path.resolve().name)
    return Corpus(
        name.strip("-.") or "folder",
        f"{count(len(documents), 'passage')} of {_shown(path)}",
        documents,
        tuple(skipped),
        complete,
        left_out,
        tuple(passed_by),
    )


def _path(name: str) -> Path:
    if not name:  # such as an unset variable of a shell; Path("") would be the current folder
        raise CorpusError("the path is empty: write . for the current folder")
    path = Path(name)
    if not path.exists():
        hint = ": addresses are not read; download the files first" if is_address(path) else ""
        raise CorpusError(f"there is no file or folder {name!r}{hint}")
    return path


def _check_path(path: Path) -> None:
    if not path.exists():
        raise CorpusError(f"there is no file or folder {str(path)!r}")
    if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
        raise CorpusError(f"the folder {str(path)!r} cannot be read: permission denied")
    if not is_encodable(os.path.realpath(path)):
        raise CorpusError(f"the path {os.path.realpath(path)!a} is not UTF-8")


def _shown(path: Path) -> Path:
    """Return ``path``, or the name of the folder if ``path`` is ``.`` or ``..``."""
    return path if path.name not in ("", "..") else Path(path.resolve().name or path)


def _text_files(
    path: Path, skipped: list[Skipped], others: Counter[str], passed_by: list[Skipped]
) -> list[Path]:
    try:
        return sorted(_walked(path, skipped, others, passed_by))
    except UnreadableRulesError as error:  # a file that it excludes must not be sent
        raise CorpusError(str(error)) from None


def _walked(
    path: Path, skipped: list[Skipped], others: Counter[str], passed_by: list[Skipped]
) -> Iterator[Path]:
    def note(error: OSError) -> None:
        place = Path(error.filename or path).relative_to(path).as_posix()
        skipped.append(Skipped(place, error.strerror or type(error).__name__))

    ignored = Ignored(path)

    def wanted(name: str, *, is_folder: bool) -> bool:
        if name.startswith("."):
            return False
        left_out = ignored(Path(root, name), is_folder=is_folder)
        others[_IGNORED] += left_out
        return not left_out

    def pass_by(place: Path, reason: str) -> None:
        passed_by.append(Skipped(place.relative_to(path).as_posix(), reason))

    for root, folders, files in os.walk(path, onerror=note):
        folders[:] = [name for name in folders if wanted(name, is_folder=True)]
        for name in folders:
            if _leads_out(Path(root, name), path):  # os.walk does not follow it
                pass_by(Path(root, name), _LINK)
                others[_OUTSIDE] += 1
        for name in files:
            if not wanted(name, is_folder=False):
                continue
            file, suffix = Path(root, name), Path(name).suffix.lower()
            leads_out = _leads_out(file, path)
            if leads_out:
                pass_by(file, _LINK)
            if suffix in CONVERTED and not can_convert():
                if not leads_out:
                    pass_by(file, f'needs pip install "{INSTALL}"')
                others[suffix] += 1
            elif suffix not in KINDS and suffix not in TABLES and suffix not in CONVERTED:
                others[suffix or "without a suffix"] += 1
            elif leads_out:
                others[_OUTSIDE] += 1
            elif suffix in _PAGES and is_own_page(file):
                others[_OWN] += 1
            else:
                yield file


def _leads_out(link: Path, folder: Path) -> bool:
    try:
        return link.is_symlink() and not link.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # the links form a loop; reading the file reports it
        return False


def is_own_page(page: Path) -> bool:
    """Return whether ``report`` or ``tune`` wrote the page, which repeats texts and questions."""
    if not page.is_file():  # opening a named pipe would never end
        return False
    try:
        with page.open("rb") as file:
            return _GENERATOR in file.read(2000)
    except OSError:
        return False  # reading the file reports it


def _cut(text: str, tuned: TunedSettings, kind: str) -> Iterator[tuple[int, str]]:
    return cut(text, tuned.passage_characters, tuned.overlap, tuned.headings, kind)


def _file_passages(
    files: list[Path], base: Path, skipped: list[Skipped], tuned: TunedSettings
) -> Iterator[Document]:
    for file in files:
        source, suffix = file.relative_to(base).as_posix(), file.suffix.lower()
        url = ""
        for row, text in _texts(file, source, skipped):
            url = url or file.resolve().as_uri()
            for line, passage in _cut(text, tuned, kind_of(file.name)):
                if is_blank(passage):  # nothing but invisible characters
                    continue
                place = row or (0 if suffix in CONVERTED else line)
                yield Document(passage, f"{source}:{place}" if place else source, url)


def _texts(file: Path, source: str, skipped: list[Skipped]) -> list[tuple[int, str]]:
    """Return the texts of a file: its rows with their numbers, or one text with the number 0.

    The reasons for what is left out are added to ``skipped``.
    """
    text, suffix = _read(file, source, skipped), file.suffix.lower()
    if text is None:
        return []
    if suffix not in ROWS:
        return [(0, text)]
    try:
        # All or nothing: the old passages of a file that cannot be read stay in the index.
        found = list(rows(text, suffix))
    except NotConvertedError as error:
        skipped.append(Skipped(source, str(error)))
        return []
    skipped += (Skipped(f"{source}:{number}", "has no text") for number, row in found if not row)
    return [(number, row) for number, row in found if row]


def kind_of(name: str) -> str:
    """Return how the headings of a file are marked; Sphinx's ``a.rst.txt`` is reStructuredText.

    The name may end with the number of a row, such as ``a.csv:2``.
    """
    name = "topic.rst" if _TOPIC.fullmatch(name) else _LINE.sub("", name).lower()
    suffix = Path(name).suffix
    if suffix in CONVERTED:
        return "md"
    if suffix in ROWS:
        return "none"
    inner = Path(name.removesuffix(".txt")).suffix
    return KINDS.get(inner) or KINDS.get(suffix, "plain")


def _read(file: Path, source: str, skipped: list[Skipped]) -> str | None:
    """Return the text of a file; if there is none, add the reason to ``skipped``."""
    if not is_encodable(source):
        printable = os.fsencode(source).decode("utf-8", "backslashreplace")
        skipped.append(Skipped(printable, "its name is not UTF-8"))
        return None
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a named pipe would never end
            skipped.append(Skipped(source, "not a regular file"))
            return None
        if status.st_size > _LARGEST_FILE:
            skipped.append(
                Skipped(source, f"larger than {_LARGEST_FILE // 1_000_000} MB: split it")
            )
            return None
        data = file.read_bytes()
    except OSError as error:
        skipped.append(Skipped(source, error.strerror or type(error).__name__))
        return None
    suffix = file.suffix.lower()
    try:
        if suffix in CONVERTED:
            return markdown(data, suffix)
        if kind := not_text(data):
            raise NotConvertedError(f"not text: {kind}")
        return decoded(data)
    except NotConvertedError as error:
        skipped.append(Skipped(source, str(error)))
        return None


def _others(others: Counter[str]) -> str:
    """Return ``7 files of other types skipped: 5 .png, 2 .zip``."""
    ignored, outside, own = (others.pop(key, 0) for key in (_IGNORED, _OUTSIDE, _OWN))
    lines = []
    if others:
        total, shown = sum(others.values()), others.most_common(_KINDS_SHOWN)
        # Users may expect that these are read, as they are if they are named.
        shown += [(one, others[one]) for one in JSON if one in others and one not in dict(shown)]
        kinds = [f"{number:,} {suffix}" for suffix, number in shown]
        if rest := total - sum(number for _, number in shown):
            kinds.append(f"{rest:,} more")
        hint = ""
        if convertible := sorted(others.keys() & CONVERTED.keys()):
            hint = f' (for {", ".join(convertible)}: pip install "{INSTALL}")'
        lines.append(f"{count(total, 'file')} of other types skipped: {', '.join(kinds)}{hint}")
    if ignored:
        what = "" if others else (" file or folder" if ignored == 1 else " files or folders")
        lines.append(f"{ignored:,}{what} ignored (.gitignore, node_modules)")
    if outside:
        links = "1 link that leads" if outside == 1 else f"{outside:,} links that lead"
        lines.append(f"{links} out of the folder skipped")
    if own:
        lines.append(f"{count(own, 'page')} of report or tune skipped")
    return "; ".join(lines)


def _nothing(path: Path, files: list[Path], skipped: list[Skipped], left_out: str) -> str:
    """Return the reason why ``path`` contains no text."""
    if skipped and files == [path]:
        return f"{str(path)!r} cannot be read: {skipped[0].reason}"
    if skipped:
        more = f" (and {len(skipped) - 1} more)" if len(skipped) > 1 else ""
        return f"nothing in {str(path)!r} can be read: {skipped[0]}{more}"
    if files:
        return f"{str(path)!r} holds no text: it is empty or blank"
    suffixes = ", ".join(sorted([*KINDS, *TABLES, *(CONVERTED if can_convert() else ())]))
    return f"{str(path)!r} holds no text: none of its files ends in {suffixes}" + (
        f"; {left_out}" if left_out else ""
    )


def _front(documents: Iterator[Document], limit: int | None) -> tuple[tuple[Document, ...], bool]:
    """Return the first ``limit`` documents with distinct texts, and whether these are all."""
    kept: dict[str, Document] = {}
    others: dict[str, dict[str, None]] = {}
    complete = True
    for document in documents:
        if first := kept.get(document.text):
            if document.origin != first.origin:
                others.setdefault(document.text, {})[document.origin] = None
        elif limit is not None and len(kept) >= limit:
            complete = False
            break
        else:
            kept[document.text] = document
    for text, files in others.items():
        kept[text] = replace(kept[text], also_in=tuple(files))
    return tuple(kept.values()), complete
