"""Pipelines opened, filled and asked, with what it all cost: what the commands have in common."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import Lock

from nexusflow_integrations._core.request.failures import clean
from nexusflow_integrations._core.settings import resolve_base_url
from nexusflow_integrations._core.usage import Usage
from nexusflow_integrations.cli.rag.answer import Quote, quote
from nexusflow_integrations.cli.rag.corpus import Corpus, Document
from nexusflow_integrations.cli.rag.endpoint import Endpoint, open_endpoint
from nexusflow_integrations.cli.rag.indexes import About, Index
from nexusflow_integrations.cli.rag.pipeline import (
    FRAMEWORKS,
    Chat,
    Passage,
    Pipeline,
    fill,
    open_pipeline,
)
from nexusflow_integrations.cli.rag.questions import Question
from nexusflow_integrations.client import NexusFlow
from nexusflow_integrations.errors import ConfigurationError, NexusFlowError

_AT_ONCE_LOCAL = 40
_AT_ONCE = 160
"""Documents handed to a framework at once: 16 requests in flight, and a bar that still moves."""

_SAME_SCORE = 1e-3


class ChatError(Exception):
    """The chat model did not answer; the message is one sentence, without the key."""


class Meter:
    """Adds up what calls cost; hand it to ``on_usage``."""

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
class Filled:
    """What filling one collection took: documents added, seconds, and what it cost."""

    added: int
    seconds: float
    usage: Usage


@dataclass(frozen=True)
class Found:
    """What one framework found.

    Attributes:
        framework: Its short name.
        passages: Nearest first.
        seconds: From the question to the passages, embedding included.
    """

    framework: str
    passages: list[Passage]
    seconds: float


@dataclass
class Session:
    """One endpoint and one index folder, in use."""

    endpoint: Endpoint
    index: Index
    frameworks: tuple[str, ...]
    cache: str | bool
    pipelines: dict[str, Pipeline] = field(default_factory=dict)
    meters: dict[str, Meter] = field(default_factory=dict)
    quoting: Meter = field(default_factory=Meter)

    def open(self, framework: str) -> Pipeline:
        """Import a framework and open its collection, the first time."""
        if framework not in self.pipelines:
            meter = self.meters[framework] = Meter()
            self.pipelines[framework] = open_pipeline(
                framework, self.index.chroma, self.endpoint, on_usage=meter, cache=self.cache
            )
        return self.pipelines[framework]

    def fill(
        self,
        framework: str,
        corpus: Corpus,
        progress: Callable[[int, Usage], object] = lambda _, __: None,
    ) -> Filled:
        """Make a framework's collection hold the corpus, paying only for what it lacks.

        Args:
            framework: Short name.
            corpus: What to index.
            progress: Called with the documents added since the last time, and the cost so far.
        """
        pipeline, meter = self.open(framework), self.meters[framework]
        began = time.perf_counter()
        added = fill(
            pipeline,
            corpus.documents,
            at_once=_AT_ONCE_LOCAL if self.endpoint.local_model else _AT_ONCE,
            progress=lambda fresh: progress(fresh, meter.total),
        )
        return Filled(added, time.perf_counter() - began, meter.total)

    def describe(self, corpus: Corpus, source: str) -> None:
        """Write down in the index folder what it holds now."""
        filled = set(self.frameworks)
        if (self.index.directory / "index.json").exists():
            filled |= set(self.index.about().frameworks)
        self.index.describe(
            About(
                corpus=source,
                title=corpus.title,
                frameworks=tuple(name for name in FRAMEWORKS if name in filled),
                endpoint=self.endpoint.name,
                local_model=self.endpoint.local_model,
                base_url=None if self.endpoint.local_model else self.endpoint.base_url,
                dimensions=self.endpoint.dimensions,
                documents=len(corpus.documents),
            )
        )

    def search(self, framework: str, question: str, k: int) -> Found:
        """Return what a framework finds."""
        pipeline = self.open(framework)
        began = time.perf_counter()
        passages = pipeline.search(question, k)
        return Found(framework, passages, time.perf_counter() - began)

    def documents(self) -> list[Document]:
        """Return what the index holds, as Chroma kept it."""
        import chromadb
        from chromadb.config import Settings

        client = chromadb.PersistentClient(
            str(self.index.chroma),
            settings=Settings(anonymized_telemetry=False, is_persistent=True),
        )
        collection = client.get_collection(self.frameworks[0], embedding_function=None)
        held = collection.get(include=["documents", "metadatas"])
        return [
            Document(text, str(metadata["source"]), str(metadata["url"]))
            for text, metadata in zip(held["documents"] or [], held["metadatas"] or [], strict=True)
        ]

    def quote(self, question: str, passages: Sequence[Passage]) -> list[Quote]:
        """Answer from the passages word for word; see ``answer.quote``."""
        client = NexusFlow(
            self.endpoint.api_key,
            base_url=self.endpoint.base_url,
            dimensions=self.endpoint.dimensions,
            on_usage=self.quoting,
            cache=self.cache,
        )
        return quote(question, passages, client)

    def write(self, found: Found, question: str, chat: Chat) -> Iterator[str]:
        """Have a chat model answer through the framework that found the passages.

        Raises:
            ChatError: It did not.
            ImportError: The framework's chat class is not installed.
        """
        try:
            yield from self.open(found.framework).write(question, found.passages, chat)
        except (ImportError, NexusFlowError):
            raise
        except Exception as error:  # noqa: BLE001 - each framework and its SDK has errors of its own
            reason = clean(str(error), [chat.api_key], 300)
        else:
            return
        # Not from within the handler: the frames of an SDK hold the key.
        raise ChatError(f"the chat model {chat.model} did not answer: {reason}")

    def usage(self) -> Usage:
        """Return what everything cost so far."""
        total = self.quoting.total
        for meter in self.meters.values():
            total = total + meter.total
        return total


@contextmanager
def session(
    place: Callable[[Endpoint], Index],
    frameworks: Sequence[str],
    *,
    local: bool | None = None,
    dimensions: int | None = None,
    model: str | None = None,
) -> Iterator[Session]:
    """Open the endpoint for as long as the block runs.

    With the embedded server, whose port is another one each time, vectors are remembered only for
    the block: enough for the second and the third framework to pay nothing. With the service they
    are remembered in the user's cache.

    Args:
        place: Says where the index of an endpoint is.
        frameworks: Short names.
        local, dimensions, model: As for ``open_endpoint``.
    """
    with ExitStack() as stack:
        endpoint = stack.enter_context(
            open_endpoint(local=local, dimensions=dimensions, model=model)
        )
        cache: str | bool = True
        if endpoint.local_model:
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="nexusflow-", ignore_cleanup_errors=True)
            )
            cache = f"{folder}/vectors.sqlite3"
        yield Session(endpoint, place(endpoint), tuple(frameworks), cache)


@contextmanager
def reopened(index: Index, frameworks: Sequence[str] = ()) -> Iterator[Session]:
    """Open an index with what made it.

    Args:
        index: A finished index.
        frameworks: Which to ask; default: the first that it was filled through.

    Raises:
        ConfigurationError: It was made through the service, and there is no key or the endpoint is
            another one now; or not through one of ``frameworks``.
    """
    about = index.about()
    for name in frameworks:
        if name not in about.frameworks:
            filled = ", ".join(about.frameworks)
            raise ConfigurationError(
                f"the index {index.name!r} was not filled through {name}, only through {filled}"
            )
    if about.base_url is not None and about.base_url != resolve_base_url():
        # What stands in a file must not decide where the key is sent.
        raise ConfigurationError(
            f"the index {index.name!r} was made at {about.base_url}, and the endpoint is"
            f" {resolve_base_url()} now: set NEXUSFLOW_BASE_URL to ask it"
        )
    with session(
        lambda _: index,
        frameworks or about.frameworks[:1],
        local=about.local_model is not None,
        dimensions=about.dimensions,
        model=about.local_model,
    ) as opened:
        index.touch()
        yield opened


# -- comparing and measuring ---------------------------------------------------------------------


def agree(found: Sequence[Found]) -> bool:
    """Tell whether all frameworks found the same passages with the same scores.

    Scores count as the same within 0.001; passages whose scores are that near may change places.
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
    """Return the share of questions with an accepted answer among the first 1, 3 and 5 hits."""
    hits = [0] * len(CUTS)
    for question in questions:
        sources = [passage.source for passage in search(question.text, max(CUTS))]
        right = [place for place, source in enumerate(sources, 1) if question.accepts(source)]
        for cut, most in enumerate(CUTS):
            hits[cut] += bool(right) and right[0] <= most
    return tuple(count / len(questions) for count in hits)
