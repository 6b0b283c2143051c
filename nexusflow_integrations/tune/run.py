"""``Tuning``: plan, measure and choose settings for one's own documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from nexusflow_integrations._core import checks
from nexusflow_integrations._core.call.caller import Callback
from nexusflow_integrations._core.keywords import words_of
from nexusflow_integrations._core.request.long_texts import check_document
from nexusflow_integrations._core.settings import Settings
from nexusflow_integrations._core.tuned import TunedSettings
from nexusflow_integrations._core.usage import Budget, Price
from nexusflow_integrations.client import NexusFlow
from nexusflow_integrations.errors import (
    BudgetExceededError,
    ConfigurationError,
    InvalidInputError,
)
from nexusflow_integrations.tune.arguments import (
    documents_of,
    items_of,
    questions_of,
    sizes_of,
    texts_of,
)
from nexusflow_integrations.tune.measuring import Measuring
from nexusflow_integrations.tune.passages import Passages
from nexusflow_integrations.tune.questions import (
    FEWEST_WORDS,
    MOST_CHARACTERS,
    Question,
    check_questions,
    make_questions,
)
from nexusflow_integrations.tune.result import TuneResult
from nexusflow_integrations.tune.retrieval import STORAGES, Storage
from nexusflow_integrations.tune.scores import Bootstrap, need_measures, tellable
from nexusflow_integrations.tune.search import (
    Measured,
    Options,
    Stage,
    choose,
    drive,
    kept_of,
    possible_cuttings,
    search,
)
from nexusflow_integrations.tune.settings import Cutting, Setting
from nexusflow_integrations.tune.written import ChatModel, PlannedChat, Writer

QUERY_INSTRUCTION = "Instruct: Given a question, retrieve passages that answer it\nQuery: "
"""The form that the documentation of the model's family recommends."""
_USUAL_SIZE = 1024
"""The size of the vectors without tuning."""
_PROBED = 5
"""Number of passages, and of questions, that show whether smaller vectors are cut from larger."""


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
        budget: The maximum to spend, including the chat model. Settings that would exceed it are
            left out.
        start: The first settings; their model is ignored. If the questions are too few to choose
            well, these settings are kept. Default: the defaults of this package.
        sizes: Sizes to compare. Default: all sizes of the model.
        lengths: Maximum characters of a passage, to compare.
        overlaps: Overlaps to compare, as a share of the length.
        headings: Whether to also measure passages without the headings above them.
        query_instructions: Texts to put in front of each query, to compare.
        document_instructions: Texts to put in front of each passage, to compare.
        hybrid: Whether to measure keywords, alone and together with vectors.
        storages: Formats of vectors to compare.

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
                raise checks.refuse(name, f"a {kind.__name__} or None", given)
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
            sizes_of(sizes, self._client),
            tuple(checks.whole("lengths", item, 50) for item in items_of("lengths", lengths)),
            tuple(
                checks.number("overlaps", item, least=0, most=0.25)
                for item in items_of("overlaps", overlaps)
            ),
            checks.flag("headings", headings),
            texts_of("query_instructions", query_instructions),
            texts_of("document_instructions", document_instructions),
            checks.flag("hybrid", hybrid),
            tuple(
                checks.one_of("storages", item, STORAGES) for item in items_of("storages", storages)
            ),
        )
        self._documents = documents_of(documents)
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
                    "no questions can be made from these documents: they need a sentence of at"
                    f" least {FEWEST_WORDS} words and at most {MOST_CHARACTERS} characters between"
                    " two others of its paragraph, or two headings of at least two words, each"
                    " above a paragraph. Pass your own questions"
                )
        else:
            self.questions = questions_of(questions)
        if self._writer is None:
            check_questions(self.questions, self._documents)
            for number, question in enumerate(self.questions, 1):
                _check_question(question, number, settings)
        start = TunedSettings() if start is None else start
        self._first = Setting(
            Cutting(start.passage_characters, start.overlap, start.headings),
            self._options.sizes[0],
            query_instruction=start.query_instruction,
            document_instruction=start.document_instruction,
        )
        size = start.dimensions or _USUAL_SIZE
        self._start = replace(
            self._first,
            dimensions=size if size in self._options.sizes else self._options.sizes[0],
            method="hybrid" if start.hybrid and self._options.hybrid else "vectors",
        )
        self._corpora: dict[Cutting, Passages] = {}
        self._embedding = ""
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

    def plan(self, client: NexusFlow | None = None) -> Plan:
        """Return the plan and its maximum cost. Nothing is sent.

        Args:
            client: Another client, if the plan should be for its cache and price.
        """
        if client is not None:
            other = copy(self)  # the passages are cut only once
            other._client, other._largest = client, client.resized(self._options.sizes[0])
            return other.plan()
        asked = self._asked()
        before = self._first.query_instruction or ""
        estimate = self._largest.estimate([before + text for text in asked])
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
            tokens = max(
                sum(self._missing(cutting, text) for text in self._options.document_instructions)
                for cutting in self._corpora
            )
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
        measuring = Measuring(self, self._largest)

        def measure(stage: Stage) -> list[Measured]:
            progress(stage.name)
            return measuring.stage(stage)

        found = drive(search(self._first, self._options, bootstrap, self._start), measure)
        start = kept_of(found, self._start)
        return TuneResult(
            questions=tuple(self.questions),
            made=self.made,
            measured=tuple(found),
            chosen=choose(found, bootstrap, self._start),
            start=start,
            unmeasured=None if start.setting == self._start else self._start,
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

    @property
    def _doing(self) -> str:
        """What ``run`` waits for, and how far it is."""
        if (writer := self._writer) is not None and not self.questions:
            most = len(writer.expected)
            return f"writing: {most - len(writer.left):,}/{most:,} questions"
        return self._embedding

    def _passages(self, cutting: Cutting) -> Passages:
        if cutting not in self._corpora:
            self._corpora[cutting] = Passages.of(self._documents, cutting, self._client)
        return self._corpora[cutting]

    def _missing(self, cutting: Cutting, instruction: str | None = None) -> int:
        """Return the tokens of passages whose vectors are not in the cache."""
        before = instruction or self._first.document_instruction or ""
        texts = [before + text for text in self._passages(cutting).texts]
        return self._largest.estimate(texts).tokens

    def _probe_tokens(self) -> int:
        texts = list(chain(*self._probe()))
        # Without an instruction, the largest vectors of these texts are needed later anyway.
        again = self._first.document_instruction or self._first.query_instruction
        sizes = self._options.sizes if again else self._options.sizes[1:]
        return sum(self._client.resized(size).estimate(texts).tokens for size in sizes)

    def _probe(self) -> tuple[list[str], list[str]]:
        passages = self._passages(self._first.cutting).texts
        return _spread(passages), _spread(self._asked())


def _check_question(question: Question, number: int, settings: Settings) -> None:
    try:
        check_document(question.text, settings)
    except InvalidInputError as error:
        where = question.where or f"question {number}"
        raise ConfigurationError(f"{where} ({question.text[:60]!r}): {error}") from None


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
