"""Measure settings on documents: embed texts stage by stage, rank passages, judge rankings."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from nexusflow_integrations._core import checks
from nexusflow_integrations._core.call.caller import Callback
from nexusflow_integrations._core.comparing import TOLERANCE, deviation
from nexusflow_integrations._core.keywords import words_of
from nexusflow_integrations._core.models import model_named
from nexusflow_integrations._core.texts import no_rows
from nexusflow_integrations._core.tuned import TunedSettings
from nexusflow_integrations._core.usage import Budget, Price, Usage
from nexusflow_integrations._core.vectors import Vectors
from nexusflow_integrations.cli.rag import corpus
from nexusflow_integrations.cli.rag.passages import cut
from nexusflow_integrations.client import NexusFlow
from nexusflow_integrations.errors import BudgetExceededError, ConfigurationError
from nexusflow_integrations.tune.questions import (
    Answer,
    Document,
    Question,
    Truth,
    check_questions,
    make_questions,
)
from nexusflow_integrations.tune.result import TuneResult
from nexusflow_integrations.tune.retrieval import (
    STORAGES,
    Places,
    Storage,
    Vectored,
    bytes_of_vectors,
    joined,
    shortened,
)
from nexusflow_integrations.tune.scores import DEPTH, Bootstrap, judge, need_measures, tellable
from nexusflow_integrations.tune.search import (
    READ,
    Measured,
    Options,
    Stage,
    choose,
    drive,
    possible_cuttings,
    search,
)
from nexusflow_integrations.tune.settings import Cutting, Setting
from nexusflow_integrations.tune.written import ChatModel, PlannedChat, Writer

if TYPE_CHECKING:
    from nexusflow_integrations.cli.rag.keywords import Keywords

QUERY_INSTRUCTION = "Instruct: Given a question, retrieve passages that answer it\nQuery: "
"""The form that the documentation of the model's family recommends."""
_POOL = 100
"""Number of passages in each ranking."""
_PROBED = 5
_TIMED = 30


@dataclass(frozen=True)
class PlannedStage:
    """The maximum cost of a stage, before anything is paid for.

    Attributes:
        name: The property that is varied.
        tokens: Estimated tokens of texts that are not in the cache, in the most expensive case.
    """

    name: str
    tokens: int


@dataclass(frozen=True)
class Plan:
    """The plan of a run: its questions, documents, stages and maximum cost.

    Attributes:
        questions: Number of questions, or the maximum if a chat model will write them.
        made: Whether the questions were made from the documents.
        chat: The requests to the chat model that writes the questions; ``None`` without a chat
            model. The other fields do not include its tokens and price.
        tellable: Approximately the smallest difference in nDCG@10 that is measurable with the
            questions.
        documents: Number of documents.
        stages: The stages in order. A stage that is not reached costs nothing.
        token_error: Largest measured relative error of the token estimate.
        price: The price of tokens.
    """

    questions: int
    made: bool
    tellable: float
    documents: int
    stages: tuple[PlannedStage, ...]
    token_error: float
    price: Price
    chat: PlannedChat | None = None

    @property
    def tokens(self) -> int:
        """Tokens of all stages."""
        return sum(stage.tokens for stage in self.stages)

    @property
    def cost(self) -> float:
        """Price of ``tokens``."""
        return self.price.of(self.tokens)


class Tuning:
    """One run: make a plan, look at its cost, and then measure.

    Args:
        documents: Texts to search: a mapping from name to text, or pairs of name and text. If a
            name occurs several times, finding any of its texts is enough. The suffix of the name,
            such as ``.md`` or ``.rst``, says how headings are marked.
        questions: Questions and their answers. ``None`` makes questions from the documents.
        client: A client without instructions. Use one with a ``cache``, so that no text is paid for
            twice if a run is killed. Default: the service, with the cache in the user's folder.
        chat: A chat model that writes the questions; see `ChatModel`. ``plan`` gives the number of
            calls, and ``run`` makes them first.
        budget: The maximum to spend, including the chat model. Stages that would exceed it are
            left out.
        start: The first settings; their model is ignored. Default: the defaults of this package.
        sizes: Sizes to compare. Default: all sizes of the model.
        lengths: See `Options`.
        overlaps: See `Options`.
        headings: See `Options`.
        query_instructions: See `Options`.
        document_instructions: See `Options`.
        hybrid: See `Options`.
        storages: See `Options`.

    Raises:
        ConfigurationError: An argument is invalid, an answer is in no document, or no questions
            can be made from the documents.
        ImportError: A package of the extra ``tune`` is missing.
    """

    def __init__(
        self,
        documents: Mapping[str, str] | Iterable[tuple[str, str]],
        questions: Iterable[Question] | None = None,
        *,
        client: NexusFlow | None = None,
        chat: ChatModel | None = None,
        budget: Budget | None = None,
        start: TunedSettings | None = None,
        sizes: Sequence[int] | None = None,
        lengths: Sequence[int] = (400, 800, 1600),
        overlaps: Sequence[float] = (0.125,),
        headings: bool = True,
        query_instructions: Sequence[str] = (QUERY_INSTRUCTION,),
        document_instructions: Sequence[str] = (),
        hybrid: bool = True,
        storages: Sequence[Storage] = STORAGES,
    ) -> None:
        need_measures()
        words_of("")  # raises an error if a package is missing, before anything is paid for
        for name, given, kind in (
            ("client", client, NexusFlow),
            ("chat", chat, ChatModel),
            ("start", start, TunedSettings),
        ):
            if given is not None and not isinstance(given, kind):
                raise checks.refuse(name, f"{kind.__name__}(...) or None", given)
        self._client = NexusFlow(cache=True) if client is None else client
        settings = self._client.settings
        if settings.query_instruction or settings.document_instruction:
            raise ConfigurationError(
                "the client has an instruction: pass a client without instructions, and pass them"
                " as query_instructions=[...] or document_instructions=[...]"
            )
        self._unlimited = self._client
        if not isinstance(budget, Budget | None):
            raise checks.refuse("budget", "a Budget or None", budget)
        self._limit(budget)
        self._options = Options(
            _sizes(sizes, self._client),
            tuple(checks.whole("lengths", item, 50) for item in _several("lengths", lengths)),
            tuple(
                checks.number("overlaps", item, least=0, most=0.25)
                for item in _several("overlaps", overlaps)
            ),
            checks.flag("headings", headings),
            _texts("query_instructions", query_instructions),
            _texts("document_instructions", document_instructions),
            checks.flag("hybrid", hybrid),
            tuple(
                checks.one_of("storages", item, STORAGES) for item in _several("storages", storages)
            ),
        )
        self._documents = _documents(documents)
        self.made = questions is None and chat is None
        """Whether the questions were made from the documents."""
        self._writer: Writer | None = None
        if chat is not None:
            if questions is not None:
                raise ConfigurationError(
                    "chat and questions cannot be used together: leave out one of them"
                )
            self._writer = Writer(chat, self._documents, budget)
            self.questions: list[Question] = []
        elif questions is None:
            self._documents, self.questions = make_questions(self._documents)
            if not self.questions:
                raise ConfigurationError(
                    "no questions can be made from these documents, because no paragraph has three"
                    " sentences: pass your own questions"
                )
        else:
            self.questions = _questions(questions)
        if self._writer is None:
            check_questions(self.questions, self._documents)
        start = TunedSettings() if start is None else start
        self._first = Setting(
            Cutting(start.passage_characters, start.overlap, start.headings),
            self._options.sizes[0],
            query_instruction=start.query_instruction,
            document_instruction=start.document_instruction,
        )
        self._corpora: dict[Cutting, _Passages] = {}
        self._largest = self._client.resized(self._options.sizes[0])

    def _limit(self, budget: Budget | None) -> None:
        self._budget = budget
        self._client = self._unlimited if budget is None else self._unlimited._limited(budget)

    def _asked(self) -> list[str]:
        """Return the questions; if they are not written yet, return texts at least as long."""
        if self._writer is not None and not self.questions:
            return self._writer.expected
        return [question.text for question in self.questions]

    def _write_questions(self, progress: Callable[[str], object]) -> None:
        """Let the chat model write the questions, but keep enough budget for the first stage."""
        if (writer := self._writer) is None or self.questions:
            return
        first = self.plan().stages[0].tokens
        progress(f"questions, written by {writer.model}")
        questions = writer.write(first, self._client.price.of(first))
        if not questions:
            raise BudgetExceededError(
                f"the first stage needs about {first:,} tokens, and the rest of the budget is too"
                " small for a question: nothing was sent"
            )
        self.questions = questions
        check_questions(questions, self._documents)
        self._limit(writer.rest())
        self._largest = self._client.resized(self._options.sizes[0])

    def plan(self) -> Plan:
        """Return the plan and its maximum cost. Nothing is sent."""
        asked = self._asked()
        estimate = self._largest.estimate(asked)
        queries = estimate.tokens
        stages = []
        for name, cases in possible_cuttings(self._first.cutting, self._options).items():
            tokens = max((sum(map(self._missing, case)) for case in cases), default=0)
            if name == "method":
                tokens += queries + self._probe_tokens()
            stages.append(PlannedStage(name, tokens))
            if name == "passage length" and self._options.query_instructions:
                texts = [text + item for text in self._options.query_instructions for item in asked]
                stages.append(
                    PlannedStage("query instruction", self._largest.estimate(texts).tokens)
                )
        if self._options.document_instructions:
            most = max(self._passages(cutting).tokens for cutting in self._corpora)
            tokens = len(self._options.document_instructions) * most
            stages.append(PlannedStage("document instruction", tokens))
        return Plan(
            len(asked),
            self.made,
            tellable(len(asked)),
            len(self._documents),
            tuple(stages),
            estimate.token_error,
            self._client.price,
            None if self._writer is None else self._writer.plan(self._largest),
        )

    def run(self, progress: Callable[[str], object] = lambda _: None) -> TuneResult:
        """Measure the settings, and return the result.

        Args:
            progress: Called with the name of each step before the step begins. The first error that
                it raises is logged.

        Raises:
            BudgetExceededError: The budget is too small for the first stage.
            ChatError: The chat model did not answer, or wrote no questions. Questions that it wrote
                are kept for the next run if `ChatModel` has a file.
            NexusFlowError: Embedding failed. With a cache, the next run continues where this one
                ended.
        """
        progress = Callback("progress", checks.function("progress", progress) or (lambda _: None))
        self._write_questions(progress)
        bootstrap = Bootstrap(len(self.questions))
        measuring = _Measuring(self, self._largest)

        def measure(stage: Stage) -> list[Measured]:
            progress(stage.name)
            return measuring.stage(stage)

        found = drive(search(self._first, self._options, bootstrap), measure)
        return TuneResult(
            questions=tuple(self.questions),
            made=self.made,
            measured=tuple(found),
            chosen=choose(found, bootstrap),
            model=self._client.model,
            cut_sizes=tuple(measuring.cut_sizes),
            paid_sizes=tuple(measuring.paid_sizes),
            skipped=tuple(measuring.skipped),
            left_out=measuring.left_out,
            predicted_tokens=round(measuring.predicted),
            usage=measuring.usage,
            chat=None if self._writer is None else self._writer.usage,
            unwritten=0 if self._writer is None else self._writer.unasked,
        )

    def _passages(self, cutting: Cutting) -> _Passages:
        if cutting not in self._corpora:
            self._corpora[cutting] = _Passages.of(self._documents, cutting, self._client)
        return self._corpora[cutting]

    def _missing(self, cutting: Cutting) -> int:
        """Return the tokens of passages whose vectors are not in the cache."""
        return self._largest.estimate(self._passages(cutting).texts).tokens

    def _probe_tokens(self) -> int:
        texts = list(chain(*self._probe()))
        return sum(
            self._client.resized(size).estimate(texts).tokens for size in self._options.sizes[1:]
        )

    def _probe(self) -> tuple[list[str], list[str]]:
        passages = self._passages(self._first.cutting).texts
        return _spread(passages), _spread(self._asked())


def _spread(texts: Sequence[str]) -> list[str]:
    distinct = list(dict.fromkeys(texts))
    return distinct[:: max(1, len(distinct) // _PROBED)][:_PROBED]


def tune(
    documents: Mapping[str, str] | Iterable[tuple[str, str]],
    questions: Iterable[Question] | None = None,
    **settings: Any,
) -> TuneResult:
    """Measure which settings find the answers in documents, and choose one; see `Tuning`.

    The result's ``settings.save(path)`` writes a file for ``nexusflow index --settings`` and
    ``open_collection``.
    """
    return Tuning(documents, questions, **settings).run()


def _sizes(given: Sequence[int] | None, client: NexusFlow) -> tuple[int, ...]:
    known = model_named(client.model).sizes
    if given is None:
        if not known:
            raise ConfigurationError(f"the sizes of {client.model!r} are unknown: pass sizes=...")
        return known
    sizes = {client.resized(size).dimensions or 0 for size in _several("sizes", given)} - {0}
    if not sizes:
        raise ConfigurationError("sizes is empty: give at least one size")
    return tuple(sorted(sizes, reverse=True))


def _several(name: str, given: Iterable[Any]) -> tuple[Any, ...]:
    fits = isinstance(given, (set, frozenset)) or no_rows(given) is None
    if not fits or not isinstance(given, Iterable):
        raise checks.refuse(name, "a list", given)
    return tuple(given)


def _texts(name: str, given: Iterable[str]) -> tuple[str, ...]:
    return tuple(checks.text(name, item, "a list of texts") for item in _several(name, given))


def _documents(given: Mapping[str, str] | Iterable[tuple[str, str]]) -> list[Document]:
    pairs = given.items() if isinstance(given, Mapping) else given
    if not isinstance(pairs, Iterable):
        raise ConfigurationError(
            "documents must be a mapping from name to text, or pairs of name and text, not"
            f" {type(given).__name__}"
        )
    documents = []
    for number, pair in enumerate(pairs):
        if not (
            isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(x, str) for x in pair)
        ):
            raise ConfigurationError(f"documents: item {number} is not a pair of name and text")
        documents.append(Document(*pair))
    if not any(document.text.strip() for document in documents):
        raise ConfigurationError("documents: no document has any text")
    return documents


def _questions(given: Iterable[Question]) -> list[Question]:
    if (advice := no_rows(given, "question")) is not None or not isinstance(given, Iterable):
        raise ConfigurationError(
            f"questions must be a list of questions, not {advice or type(given).__name__}"
        )
    questions = list(given)
    for number, item in enumerate(questions):
        if not (
            isinstance(item, Question)
            and isinstance(item.text, str)
            and isinstance(item.answers, (tuple, list))
            and all(map(_is_answer, item.answers))
        ):
            raise ConfigurationError(
                f"questions: item {number} is not a Question with a text and a tuple of Answers,"
                " each with a number as its line and a tuple of texts as its quotes, if any"
            )
    return questions


def _is_answer(answer: object) -> bool:
    return (
        isinstance(answer, Answer)
        and isinstance(answer.source, str | None)
        and (answer.line is None or type(answer.line) is int)
        and isinstance(answer.quotes, (tuple, list))
        and all(isinstance(quote, str) for quote in answer.quotes)
    )


# -- measuring -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Passages:
    """The passages of the documents, cut in one way.

    Attributes:
        sources, lines, texts: One item per passage.
        tokens: Estimated tokens of all passages.
    """

    sources: list[str]
    lines: list[int]
    texts: list[str]
    tokens: int

    @classmethod
    def of(cls, documents: Sequence[Document], cutting: Cutting, client: NexusFlow) -> _Passages:
        sources, lines, texts = [], [], []
        for document in documents:
            for line, text in cut(
                document.text,
                cutting.characters,
                cutting.overlap,
                cutting.headings,
                kind=corpus.kind_of(document.source),
            ):
                sources.append(document.source)
                lines.append(line)
                texts.append(text)
        return cls(sources, lines, texts, client._uncached().estimate(texts).tokens)

    @cached_property
    def keywords(self) -> Keywords:
        from nexusflow_integrations.cli.rag.keywords import Keywords

        pairs = zip(self.texts, self.sources, strict=True)
        return Keywords([corpus.Document(*pair) for pair in pairs])

    def truth(self, questions: Sequence[Question]) -> Truth:
        return Truth(questions, self.sources, self.lines, self.texts)


def _is_read(question: int, places: list[int], truth: Truth, passages: _Passages) -> bool:
    """Return whether an answer is in the first passage, or in the first ``READ`` characters."""
    used = 0
    for place in places:
        used += len(passages.texts[place])
        if used > READ and used > len(passages.texts[place]):
            return False
        if truth.name(question, place) in truth.right[question]:
            return True
    return False


@dataclass
class _Measuring:
    """Embeds every text that the settings need, each only once, and measures the settings."""

    tuning: Tuning
    largest: NexusFlow
    predicted: float = 0.0
    cut_sizes: list[int] = field(default_factory=list)
    paid_sizes: list[int] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    left_out: int = 0
    _clients: dict[int, NexusFlow] = field(default_factory=dict)
    _before: Usage = field(default_factory=Usage)
    _held: dict[int, dict[str, Vectors]] = field(default_factory=dict)
    _ranked: dict[Setting, tuple[list[Places], float]] = field(default_factory=dict)
    _truths: dict[Cutting, Truth] = field(default_factory=dict)
    _per_estimate: dict[str, float] = field(default_factory=dict)

    def stage(self, stage: Stage) -> list[Measured]:
        """Measure the settings that the budget allows, and add the others to ``skipped``."""
        found: list[Measured] = []
        if first := not self._truths:
            needed = self.tuning.plan().stages[0].tokens
            if needed > self._left():
                raise BudgetExceededError(
                    f"the first stage needs about {needed:,} tokens, and the budget allows"
                    f" {self._left():,.0f}: nothing was sent"
                )
            self._probe_sizes()
        kept = [item for item in stage.settings if first or not self._same_passages(item)]
        for setting in kept:
            if (measured := self._within_budget(setting, must=first)) is None:
                self.skipped.append(f"{stage.name}: {setting}: the budget is too small")
                break
            found.append(measured)
        return found

    def _within_budget(self, setting: Setting, *, must: bool) -> Measured | None:
        if not must and self._missing(setting) > self._left():
            return None
        try:
            return self._measure(setting)
        except BudgetExceededError:
            if must:
                raise
            return None

    @property
    def usage(self) -> Usage:
        """Usage of the embedding model so far."""
        total = Usage(price=self.largest.price)
        for client in self._clients.values():
            total += client.usage
        return total - self._before

    def _client(self, size: int) -> NexusFlow:
        if size not in self._clients:
            client = self._clients[size] = self.tuning._client.resized(size)
            self._before += client.usage
        return self._clients[size]

    def _probe_sizes(self) -> None:
        """Find the smaller sizes that are cut from the largest vectors and need no requests."""
        largest, *smaller = self.tuning._options.sizes
        passages, questions = self.tuning._probe()
        rows = np.concatenate(
            [
                self._embed("passages", passages, largest),
                self._embed("questions", questions, largest),
            ]
        )
        for size in smaller:
            own = self._embed("passages", [*passages, *questions], size)
            apart = max(map(deviation, shortened(rows, size), shortened(own, size)))
            (self.cut_sizes if apart <= TOLERANCE else self.paid_sizes).append(size)

    def _embed(self, kind: str, texts: Sequence[str], size: int) -> Vectors:
        """Return the vectors of ``texts``, float32 of shape (n, size); zeros if one was refused."""
        held = self._held.setdefault(size, {})
        missing = list(dict.fromkeys(text for text in texts if text not in held))
        if missing:
            client = self._client(size)
            estimate = client.estimate(missing).tokens
            self.predicted += self._per_estimate.get(kind, 1.0) * estimate
            before = client.usage.tokens
            rows = client.embed(missing, on_refused="collect")
            if (billed := client.usage.tokens - before) and estimate:
                # This ratio corrects later estimates according to what the service last billed.
                self._per_estimate[kind] = billed / estimate
            blank = np.zeros(size, np.float32)
            self.left_out += sum(row is None for row in rows)
            held |= {
                text: blank if row is None else row for text, row in zip(missing, rows, strict=True)
            }
        return np.array([held[text] for text in texts], np.float32)

    def _same_passages(self, setting: Setting) -> bool:
        """Return whether an earlier way of cutting gave the same passages, as for short texts."""
        passages = self.tuning._passages(setting.cutting).texts
        return any(
            cutting != setting.cutting and self.tuning._passages(cutting).texts == passages
            for cutting in self._truths
        )

    def _missing(self, setting: Setting) -> float:
        """Return the tokens that the vectors of a setting will cost."""
        if setting.method == "keywords":
            return 0.0
        size, tokens = self._embedded_size(setting), 0.0
        held = self._held.get(size, {})
        for kind, texts in self._texts(setting).items():
            missing = [text for text in texts if text not in held]
            estimate = self._client(size).estimate(missing).tokens if missing else 0
            tokens += self._per_estimate.get(kind, 1.0) * estimate
        return tokens

    def _left(self) -> float:
        budget = self.tuning._budget
        if budget is None:
            return math.inf
        return budget.in_tokens(self.largest.price) - self.usage.tokens

    def _embedded_size(self, setting: Setting) -> int:
        size = setting.dimensions
        return size if size in self.paid_sizes else self.tuning._options.sizes[0]

    def _texts(self, setting: Setting) -> dict[str, list[str]]:
        front, ask = setting.document_instruction or "", setting.query_instruction or ""
        passages = self.tuning._passages(setting.cutting)
        return {
            "passages": [front + text for text in passages.texts],
            "questions": [ask + question.text for question in self.tuning.questions],
        }

    def _vectors(self, setting: Setting) -> list[Vectors]:
        """Return the vectors of the passages and of the questions, at the setting's size."""
        size = self._embedded_size(setting)
        return [
            shortened(self._embed(kind, texts, size), setting.dimensions)
            for kind, texts in self._texts(setting).items()
        ]

    def _ranking(self, setting: Setting) -> tuple[list[Places], float]:
        """Return the indices of each question's passages, and the median time per question."""
        key = setting
        if key in self._ranked:
            return self._ranked[key]
        questions = self.tuning.questions
        if setting.method == "hybrid":
            vectors, one = self._ranking(setting.with_method("vectors"))
            keywords, other = self._ranking(setting.with_method("keywords"))
            began = time.perf_counter()
            places = [joined(*pair, k=_POOL) for pair in zip(vectors, keywords, strict=True)]
            joining = (time.perf_counter() - began) / len(questions)
            self._ranked[key] = places, one + other + joining
        elif setting.method == "keywords":
            words = self.tuning._passages(setting.cutting).keywords
            places, times = [], []
            for question in questions:
                began = time.perf_counter()
                places.append(
                    np.array([at for at, _ in words.places(question.text, _POOL)], np.int64)
                )
                times.append(time.perf_counter() - began)
            self._ranked[key] = places, float(np.median(times))
        else:
            rows, queries = self._vectors(setting)
            times = []
            index = Vectored(rows, setting.storage)
            for query in queries[:_TIMED]:
                began = time.perf_counter()
                index.nearest(query[None], _POOL)
                times.append(time.perf_counter() - began)
            self._ranked[key] = index.nearest(queries, _POOL), float(np.median(times))
        return self._ranked[key]

    def _measure(self, setting: Setting) -> Measured:
        passages = self.tuning._passages(setting.cutting)
        places, seconds = self._ranking(setting)
        if setting.cutting not in self._truths:
            self._truths[setting.cutting] = passages.truth(self.tuning.questions)
        truth = self._truths[setting.cutting]
        ranked = []
        for number, found in enumerate(places):
            names = [truth.name(number, place) for place in found.tolist()]
            ranked.append(list(dict.fromkeys(names))[:DEPTH])
        read = [
            _is_read(number, found.tolist(), truth, passages) for number, found in enumerate(places)
        ]
        size = bytes_of_vectors(len(passages.texts), setting.dimensions, setting.storage)
        if setting.method != "vectors":
            size += passages.keywords.nbytes
        tokens = 0 if setting.method == "keywords" else self._tokens(setting)
        return Measured(
            setting,
            judge(ranked, truth.right),
            tokens,
            size,
            len(passages.texts),
            seconds,
            np.array(read, np.float64),
        )

    def _tokens(self, setting: Setting) -> int:
        passages = self.tuning._passages(setting.cutting)
        if not setting.document_instruction:
            return passages.tokens
        texts = [setting.document_instruction + text for text in passages.texts]
        return self.largest._uncached().estimate(texts).tokens
