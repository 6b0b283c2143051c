"""Updates and searches an index, and counts the cost, for all commands."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from nexusflow_integrations._core.keywords import check_packages
from nexusflow_integrations._core.request.failures import clean
from nexusflow_integrations._core.settings import resolve_base_url
from nexusflow_integrations._core.tuned import TunedSettings
from nexusflow_integrations._core.usage import Budget, Usage
from nexusflow_integrations.cli.rag.answer import Quote, is_close, quote
from nexusflow_integrations.cli.rag.collection import (
    DamagedError,
    Updated,
    discard,
    make_keyword_index,
    open_to_read,
    open_to_write,
    plan,
    reading,
    stored,
    update,
)
from nexusflow_integrations.cli.rag.corpus import Corpus, Document
from nexusflow_integrations.cli.rag.endpoint import (
    Endpoint,
    has_key,
    open_endpoint,
    same_url,
)
from nexusflow_integrations.cli.rag.indexes import About, Index, Indexes, UnusableIndexError
from nexusflow_integrations.cli.rag.pipeline import (
    Chat,
    ChatError,
    ChatTokens,
    Passage,
    Pipeline,
    open_pipeline,
)
from nexusflow_integrations.cli.rag.questions import Question
from nexusflow_integrations.cli.rag.with_chroma import ChromaPipeline
from nexusflow_integrations.client import NexusFlow
from nexusflow_integrations.errors import (
    BudgetExceededError,
    CollectionError,
    ConfigurationError,
    NexusFlowError,
)

_Result = TypeVar("_Result")
_SAME_SCORE = 1e-3
# The local model is slow. With few requests in flight and small writes, little is embedded again
# after Ctrl-C or a kill; 4 requests keep it as busy as 32.
_LOCAL_REQUESTS = 4
_LOCAL_SLICE = 50
_SAMPLED = 1_000
"""Number of the shortest passages among which cached ones are looked for."""
_CLASS = re.compile(r"\b[A-Z]\w*Error: ")
_NAMED = 5
_ANOTHER = "; make another collection"


class Meter:
    """Adds up the usage of calls; pass it as ``on_usage``."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._total = Usage()

    def __call__(self, usage: Usage) -> None:
        with self._lock:
            self._total = self._total + usage

    @property
    def total(self) -> Usage:
        """The sum so far."""
        with self._lock:
            return self._total


@dataclass(frozen=True)
class Found:
    """What one framework found.

    Attributes:
        framework: Short name of the framework.
        passages: The passages, nearest first.
        seconds: Time from the question to the passages, including embedding.
        hybrid: Whether the scores come from a hybrid search instead of being cosines.
    """

    framework: str
    passages: list[Passage]
    seconds: float
    hybrid: bool = False

    def is_close(self, model: str) -> bool:
        """Return whether the best passage may answer the question; ``True`` if unknown."""
        return bool(self.passages) and (self.hybrid or is_close(self.passages, model))


@dataclass
class Session:
    """An open index and the endpoint that embeds for it.

    Updating the index stores ``hybrid`` with it; ``None`` keeps the stored value.
    """

    endpoint: Endpoint
    index: Index
    frameworks: tuple[str, ...]
    cache: bool
    budget: Budget | None = None
    hybrid: bool | None = None
    pipelines: dict[str, Pipeline] = field(default_factory=dict)
    meter: Meter = field(default_factory=Meter)
    _folders: dict[str, Path] = field(default_factory=dict, init=False, repr=False)

    def update(
        self,
        corpus: Corpus,
        source: str,
        *,
        fresh: bool = False,
        progress: Callable[[int, Usage], object] = lambda _, __: None,
    ) -> Updated:
        """Update the index to match ``corpus``, paying only for new passages.

        After any failure, the index answers questions at least as well as before.

        Args:
            corpus: What to index. If a limit cut off the corpus, nothing is removed.
            source: ``stdlib``, ``topics`` or an absolute path.
            fresh: Rebuild the index in a new folder; the old one stays in use until the new one is
                complete.
            progress: Called with the number of passages done since the last call, and the cost so
                far.

        Raises:
            UnusableIndexError: Another process is writing to the index, or the index is damaged.
            NexusFlowError: Embedding or writing failed.
        """
        began = time.perf_counter()
        if self._hybrid():
            check_packages()
        with self.index.alone():
            try:
                done = self._update(corpus, source, progress, fresh=fresh)
            except BaseException:
                self.index.remove_if_empty()
                raise
        return replace(done, seconds=time.perf_counter() - began)

    def _update(
        self,
        corpus: Corpus,
        source: str,
        progress: Callable[[int, Usage], object],
        *,
        fresh: bool,
    ) -> Updated:
        is_local = self.endpoint.local_model is not None
        folder = self.index.draft(fresh=fresh)
        with self._sound(), self._nothing_empty_left(folder):
            collection = open_to_write(
                self.index.directory / folder,
                api_key=self.endpoint.api_key,
                api_base=self.endpoint.base_url,
                **self.endpoint.vectors,
                on_usage=self.meter,
                cache=self.cache,
                budget=self.budget,
                **({"max_concurrency": _LOCAL_REQUESTS} if is_local else {}),
            )
            before = stored(collection)
            if self.cache and not before:
                self._check_cache(corpus)
            wanted = plan(corpus, before, replaced(self.index) if fresh else None)
            done = update(
                collection,
                wanted,
                lambda more: progress(more, self.meter.total),
                **({"slice_size": _LOCAL_SLICE} if is_local else {}),
            )
            documents = collection.count()
            hybrid = self._hybrid()
            if hybrid:
                make_keyword_index(collection)
            if not documents:
                raise UnusableIndexError(f"no passage could be stored: {done.left_out[-1]}")
        former = self.index.described()
        self.index.describe(
            About(
                corpus=source,
                title=corpus.title,
                frameworks=self.frameworks,
                endpoint=self.endpoint.name,
                local_model=self.endpoint.local_model,
                base_url=self._base_url(former),
                dimensions=self.endpoint.dimensions,
                documents=documents,
                folder=folder,
                hybrid=hybrid,
                tuned=None if self.endpoint.tuned is None else asdict(self.endpoint.tuned),
                complete=not corpus.limited
                or (former is not None and former.complete and not fresh),
            )
        )
        return done

    def _base_url(self, former: About | None) -> str | None:
        """Return the URL to describe the index with: the one that has answered.

        A run that sent nothing has not tried its URL, so the URL of the ``former`` run is kept.
        """
        if self.endpoint.local_model is not None:
            return None
        if former is None or former.base_url is None or self.usage().requests:
            return self.endpoint.base_url
        return former.base_url

    @contextmanager
    def _nothing_empty_left(self, folder: str) -> Iterator[None]:
        """After a failure, delete the Chroma folder if the block created it and stored nothing."""
        path = self.index.directory / folder
        existed = path.exists()
        try:
            yield
        except BaseException:
            if not existed and path.exists() and not _holds_any(path):
                discard(path)
            raise

    def _check_cache(self, corpus: Corpus) -> None:
        """Check that the service still uses the model of cached vectors of ``corpus``.

        An empty index has no passages to compare, and would mix the vectors of both models.
        """
        texts = sorted({item.text for item in corpus.documents}, key=len)[:_SAMPLED]
        with suppress(BudgetExceededError):  # then hardly any text can be embedded, either
            self._client(budget=self.budget)._verify_cached(texts)

    def _client(self, **settings: Any) -> NexusFlow:
        return NexusFlow(
            self.endpoint.api_key,
            base_url=self.endpoint.base_url,
            **self.endpoint.vectors,
            on_usage=self.meter,
            cache=self.cache,
            **settings,
        )

    def _hybrid(self) -> bool:
        if self.hybrid is not None:
            return self.hybrid
        about = self.index.described()
        return about is not None and about.hybrid

    def open(self, framework: str) -> Pipeline:
        """Import a framework and open the index with it; later calls return the same object."""
        if framework not in self.pipelines:
            self._read(lambda folder: self._open(framework, folder))
        return self.pipelines[framework]

    def _open(self, framework: str, folder: Path) -> Pipeline:
        if self._folders.get(framework) != folder:
            self.pipelines[framework] = open_pipeline(
                framework, folder, self.endpoint, on_usage=self.meter, cache=self.cache
            )
            self._folders[framework] = folder
        return self.pipelines[framework]

    def _read(self, read: Callable[[Path], _Result]) -> _Result:
        """Return ``read(folder)``; repeat it once if a rebuild replaced the folder meanwhile.

        Raises:
            UnusableIndexError: The index cannot be read, or was removed meanwhile.
        """
        folder = self.index.chroma
        with self._sound():
            try:
                return read(folder)
            except ImportError:
                raise
            except Exception:
                if not self.index.is_replaced(folder):
                    raise
        with self._sound():
            return read(self.index.chroma)

    def search(self, framework: str, question: str, k: int, *, hybrid: bool = False) -> Found:
        """Search with a framework; with ``hybrid`` also by keywords, which only Chroma supports."""
        self.open(framework)
        began = time.perf_counter()

        def find(folder: Path) -> list[Passage]:
            pipeline = self._open(framework, folder)
            if hybrid:
                assert isinstance(pipeline, ChromaPipeline)
                return pipeline.search_hybrid(question, k)
            return pipeline.search(question, k)

        passages = self._read(find)
        return Found(framework, passages, time.perf_counter() - began, hybrid)

    def documents(self) -> list[Document]:
        """Return the documents of the index."""
        return self._read(lambda folder: list(stored(open_to_read(folder)).values()))

    @contextmanager
    def _sound(self) -> Iterator[None]:
        """Replace errors about an unreadable Chroma folder with errors that name the index."""
        try:
            with rebuilding(self.index), reading():
                yield
        except DamagedError as error:
            raise self.index.damaged(str(error)) from None
        except CollectionError as error:
            obstacle = self.index.obstacle()
            raise UnusableIndexError(
                f"the index {self.index.name!r} could not be updated, and nothing was lost:"
                f" {_CLASS.sub('', str(error))}{f'; {obstacle}' if obstacle else ''}"
            ) from None

    def quote(self, question: str, passages: Sequence[Passage]) -> list[Quote]:
        """Answer with quotes from the passages; see ``answer.quote``."""
        return quote(question, passages, self._client())

    def write(
        self, found: Found, question: str, chat: Chat
    ) -> Generator[str, None, ChatTokens | None]:
        """Let a chat model answer, with the framework that found the passages.

        The answer is yielded piece by piece, and its tokens are returned if the endpoint reports
        them.

        Raises:
            ChatError: The chat model did not answer.
            ImportError: The framework's chat class is not installed.
        """
        try:
            return (yield from self.open(found.framework).write(question, found.passages, chat))
        except (ImportError, NexusFlowError):
            raise
        except Exception as error:  # noqa: BLE001 - each framework and its SDK raises its own errors
            reason = clean(str(error), [chat.api_key], 300)
            # An endpoint that does not know ``stream_options`` refuses it before it writes
            # anything.
            uncounted = chat.counted and "stream_options" in str(error)
        if uncounted:
            return (yield from self.write(found, question, replace(chat, counted=False)))
        # Raise outside the handler, because the frames of the SDK's error hold the key.
        raise ChatError(f"the chat model {chat.model} did not answer: {reason}")

    def usage(self) -> Usage:
        """Return the usage of everything so far."""
        return self.meter.total


@contextmanager
def rebuilding(index: Index) -> Iterator[None]:
    """Replace the advice to make another collection with the command that builds ``index`` again.

    Users of the command do not see collections.
    """
    try:
        yield
    except ConfigurationError as error:
        said, found, _ = str(error).partition(_ANOTHER)
        if not found:
            raise
        raise UnusableIndexError(f"{said}; build it again with `{index.rebuilding()}`") from None


def _holds_any(folder: Path) -> bool:
    """Return whether a Chroma folder holds a passage; ``True`` if it cannot be read."""
    try:
        return open_to_read(folder).count() > 0
    except Exception:  # noqa: BLE001 - what cannot be read must not be deleted
        return True


def replaced(index: Index) -> dict[str, Document]:
    """Return the documents that a rebuild of ``index`` replaces; none if it cannot be read."""
    about = index.described()
    if about is None:
        return {}
    try:
        return stored(open_to_read(index.directory / about.folder))
    except DamagedError:
        return {}


@contextmanager
def session(
    place: Callable[[Endpoint], Index],
    frameworks: Sequence[str],
    *,
    local: bool | None = None,
    dimensions: int | None = None,
    model: str | None = None,
    budget: Budget | None = None,
    hybrid: bool | None = None,
    tuned: TunedSettings | None = None,
) -> Iterator[Session]:
    """Open the endpoint for as long as the block runs.

    Vectors from the service are stored in the user's cache. Vectors from the local server are not:
    it is free, and its port changes from run to run.

    Args:
        place: Returns the index for an endpoint.
        frameworks: Short names.
        local, dimensions, model, tuned: As for ``open_endpoint``.
        budget: The most that updating the index may cost.
        hybrid: Whether `ask` and `search` use keywords, too; ``None`` keeps the stored value.
    """
    with open_endpoint(local=local, dimensions=dimensions, model=model, tuned=tuned) as endpoint:
        yield Session(
            endpoint,
            place(endpoint),
            tuple(frameworks),
            endpoint.local_model is None,
            budget,
            hybrid,
        )


def is_of_this_endpoint(about: About) -> bool:
    """Return whether an index was made with the endpoint that embeds now.

    This is the service if there is a key, and otherwise the local model.
    """
    if has_key():
        return about.base_url is not None and same_url(about.base_url, resolve_base_url())
    return about.local_model is not None


@contextmanager
def reopened(index: Index, frameworks: Sequence[str] = ()) -> Iterator[Session]:
    """Open an index with the endpoint that made it.

    Args:
        index: A finished index.
        frameworks: The frameworks to use; default: the first of those that the index was made for.

    Raises:
        ConfigurationError: The index was made with the service, and there is no key or the endpoint
            has changed.
    """
    about = index.about()
    if about.base_url is not None and not _is_same_service(about.base_url, resolve_base_url()):
        # The contents of a file must not decide where the key is sent.
        also = "" if has_key() else " (and NEXUSFLOW_API_KEY, which is not set)"
        raise ConfigurationError(
            f"the index {index.name!r} was made at {about.base_url}, and the endpoint is"
            f" {resolve_base_url()} now: set NEXUSFLOW_BASE_URL to use the"
            f" index{also}{_others(index)}"
        )
    with session(
        lambda _: index,
        frameworks or about.frameworks[:1],
        local=about.local_model is not None,
        dimensions=about.dimensions,
        model=about.local_model,
        tuned=None if about.tuned is None else TunedSettings(**about.tuned),
    ) as opened:
        index.touch()
        with rebuilding(index):
            yield opened


def _is_same_service(one: str, two: str) -> bool:
    """Return whether two base URLs have the same origin."""
    if one == two:
        return True
    from nexusflow_integrations.chroma import _origin

    return _origin(one) == _origin(two)


def _others(index: Index) -> str:
    """Return which indexes of the endpoint that embeds now could be used in place of ``index``."""
    others = [
        one.name
        for one in Indexes(index.directory.parent).all()
        if (about := one.described()) and is_of_this_endpoint(about)
    ]
    return f", or choose another one with --index ({', '.join(others[:_NAMED])})" if others else ""


# -- comparing and measuring ---------------------------------------------------------------------


def agree(found: Sequence[Found]) -> bool:
    """Return whether all frameworks found the same passages with the same scores.

    Scores count as equal within 0.001; passages with equal scores may be in any order.
    """
    first, *others = found
    return all(
        len(other.passages) == len(first.passages)
        and all(
            abs(mine.score - theirs.score) < _SAME_SCORE
            for mine, theirs in zip(first.passages, other.passages, strict=True)
        )
        and {item.source for item in other.passages} == {item.source for item in first.passages}
        for other in others
    )


CUTS = (1, 3, 5)


def hit_rates(
    questions: Sequence[Question], search: Callable[[str, int], Sequence[Passage]]
) -> tuple[float, ...]:
    """Return hit@1, hit@3 and hit@5: the share of questions that the first passages answer."""
    hits = [0] * len(CUTS)
    for question in questions:
        sources = [passage.source for passage in search(question.text, max(CUTS))]
        right = [place for place, source in enumerate(sources, 1) if question.accepts(source)]
        for cut, most in enumerate(CUTS):
            hits[cut] += bool(right) and right[0] <= most
    return tuple(count / len(questions) for count in hits)
