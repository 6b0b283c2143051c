"""Read questions with known answers from a file, or make them from the documents."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from nexusflow_integrations._core.counts import count
from nexusflow_integrations.cli.rag import corpus
from nexusflow_integrations.cli.rag.passages import sentences
from nexusflow_integrations.cli.rag.structure import Block, blocks
from nexusflow_integrations.cli.rows import Line, lines_of_json
from nexusflow_integrations.errors import ConfigurationError

MOST_MADE = 300
"""Maximum number of questions made from the documents."""
FEWEST_WORDS, MOST_CHARACTERS = 6, 250
"""Limits of a sentence that becomes a question."""

_LINE = re.compile(r"(.+):(\d+)")
_HEADING = re.compile(r"( {0,3}#{1,6}\s+)(\S.*?)\s*#*\s*$")
_FENCE = re.compile(r"\s*(```|~~~)")
_PROSE = re.compile(r"[^\W_]|[\"'“‘(（《]")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


@dataclass(frozen=True)
class Document:
    """A text to search.

    Attributes:
        source: The name. Documents with the same source count as one: it is enough to find any.
        text: The whole text, which is cut into passages later.
    """

    source: str
    text: str


@dataclass(frozen=True)
class Answer:
    """A place that answers a question.

    Attributes:
        source: The name of a document. Without a line or quotes, the whole document is the answer.
        line: A line of the document, counted from 1. The passages with this line are the answer;
            for a heading, the passage below it.
        quotes: Sentences of a document, word for word except for white space. A passage that
            contains all of one sentence is the answer.
    """

    source: str | None = None
    line: int | None = None
    quotes: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether a whole document is the answer."""
        return self.line is None and not self.quotes


@dataclass(frozen=True)
class Question:
    """A question and its answers. Any of several answers is right.

    Attributes:
        text: The question.
        answers: Its answers.
        where: Where the question was read, such as ``questions.jsonl, line 3``; error messages
            begin with it.
    """

    text: str
    answers: tuple[Answer, ...]
    where: str = field(default="", repr=False, compare=False)

    @property
    def by_source(self) -> bool:
        """Whether results are judged by their source, so that each source counts once."""
        return any(answer.whole for answer in self.answers)


def read_questions(path: Path, sources: Collection[str]) -> list[Question]:
    """Read questions from JSONL.

    Each line is an object with ``question`` and at least one of ``source`` (``a.md``, or
    ``a.md:12`` for one line) and ``quote`` (a sentence of a document). Each of these two may also
    be a list of alternatives.

    Raises:
        ConfigurationError: A line is not of this form; the message names it.
        OSError: The file cannot be read.
    """
    found = []
    with path.open("rb") as file:
        for line in lines_of_json(file, "question"):
            where = f"{path.name}, line {line.number}"
            try:
                found.append(Question(_asked(line), _answers(line, sources), where))
            except ValueError as error:
                raise ConfigurationError(f"{where}: {error}") from None
    if not found:
        raise ConfigurationError(f"{path.name} has no questions")
    return found


def _asked(line: Line) -> str:
    if line.problem is not None:
        raise ValueError(line.problem)
    if not isinstance(line.text, str) or not line.text.strip():
        raise ValueError("has no text in 'question'")
    return line.text


def _answers(line: Line, sources: Collection[str]) -> tuple[Answer, ...]:
    if answers := answers_in(line.record, sources):
        return answers
    raise ValueError("has no answer: give a 'source' or a 'quote'")


def answers_in(record: dict[str, Any], sources: Collection[str]) -> tuple[Answer, ...]:
    """Return the answers that a line of a questions file names; there may be none.

    Args:
        record: The line, with ``source``, ``quote`` or both, as in `read_questions`.
        sources: The names of all documents, of which one may end like a line number.

    Raises:
        ValueError: A value is not text, or the two do not fit together.
    """
    places, quotes = (_texts(record, name) for name in ("source", "quote"))
    if quotes and len(places) > 1:
        raise ValueError("has a 'quote' and several 'source' values: keep the one that contains it")
    answers = [_place(name, sources) for name in places]
    if quotes:
        source = answers[0].source if answers else None
        answers = [Answer(source, quotes=(quote,)) for quote in quotes]
    return tuple(answers)


def _texts(record: dict[str, Any], name: str) -> list[str]:
    value = record.get(name)
    values = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) and item.strip() for item in values):
        raise ValueError(f"has a value in {name!r} that is not text")
    return values


def _place(name: str, sources: Collection[str]) -> Answer:
    if name not in sources and (found := _LINE.fullmatch(name)):
        return Answer(found[1], int(found[2]))
    return Answer(name)


def check_questions(questions: Sequence[Question], documents: Sequence[Document]) -> None:
    """Check that every answer is in the documents.

    Raises:
        ConfigurationError: There are no questions, or an answer is in no document. The message
            names the question.
    """
    if not questions:
        raise ConfigurationError("there are no questions")
    texts: dict[str, list[str]] = {}
    for document in documents:
        texts.setdefault(document.source, []).append(document.text)
    plain: dict[str | None, str] = {}
    for number, question in enumerate(questions, 1):
        if not question.text.strip():
            raise ConfigurationError(f"question {number} is blank")
        if not question.answers:
            raise ConfigurationError(f"question {number} has no answers")
        for answer in question.answers:
            where = f"{question.where or f'question {number}'} ({question.text[:60]!r})"
            if answer.source is not None and answer.source not in texts:
                rows = [name for name in texts if name.startswith(f"{answer.source}:")]
                hint = f"; name one of its rows, such as {rows[0]!r}" if rows else ""
                raise ConfigurationError(f"{where}: there is no document {answer.source!r}{hint}")
            if answer.source is not None and not "".join(texts[answer.source]).strip():
                raise ConfigurationError(f"{where}: the document {answer.source!r} has no text")
            held = texts if answer.source is None else {answer.source: texts[answer.source]}
            if answer.line is not None:
                longest = max(len(text.splitlines()) for found in held.values() for text in found)
                if not 1 <= answer.line <= longest:
                    lines = count(longest, "line")
                    raise ConfigurationError(
                        f"{where}: {answer.source!r} has {lines}, not {answer.line}"
                    )
            if answer.quotes:
                if answer.source not in plain:
                    plain[answer.source] = "\0".join(
                        one_line(text) for found in held.values() for text in found
                    )
                if not any(one_line(quote) in plain[answer.source] for quote in answer.quotes):
                    raise ConfigurationError(
                        f"{where}: no document contains the quote {answer.quotes[0][:60]!r}"
                    )


def one_line(text: str) -> str:
    """Return ``text`` with each run of white space replaced by one space, to compare quotes."""
    return " ".join(text.split())


# -- made from the documents ---------------------------------------------------------------------


def make_questions(
    documents: Sequence[Document], most: int = MOST_MADE
) -> tuple[list[Document], list[Question]]:
    """Make questions from the documents, and remove the text of the questions from them.

    A question is either a sentence, which is answered by the passage that contained it, or a
    heading, which is answered by its section. Both are removed from the documents, since a search
    would find the question itself there. The same documents always give the same questions.

    Returns:
        The documents without these sentences and headings, and at most ``most`` questions. At most
        a third of the questions are headings.
    """
    documents = [
        replace(item, text=item.text.replace("\r\n", "\n").replace("\r", "\n"))
        for item in documents
    ]
    asked = [
        candidate
        for place, document in enumerate(documents)
        for candidate in _candidates(place, document)
    ]
    counts: dict[str, int] = {}
    for item in asked:
        counts[item.text] = counts.get(item.text, 0) + 1
    asked = [item for item in asked if counts[item.text] == 1]
    asked.sort(key=lambda item: hashlib.sha256(item.text.encode("utf-8", "replace")).digest())
    headings = [item for item in asked if item.heading]
    # Half of the headings stay, so that their effect can still be measured.
    headings = headings[: min(len(headings) // 2, most // 3)]
    chosen = [item for item in asked if not item.heading][: most - len(headings)] + headings
    texts = [document.text for document in documents]
    for item in sorted(chosen, key=lambda item: -item.start):
        texts[item.place] = texts[item.place][: item.start] + texts[item.place][item.end :]
    left = [replace(item, text=text) for item, text in zip(documents, texts, strict=True)]
    chosen.sort(key=lambda item: (item.place, item.start))
    return left, [
        Question(item.text, (Answer(documents[item.place].source, quotes=item.beside),))
        for item in chosen
    ]


@dataclass(frozen=True)
class _Candidate:
    place: int
    start: int
    end: int
    text: str
    beside: tuple[str, ...]
    heading: bool = False


def _candidates(place: int, document: Document) -> Iterator[_Candidate]:
    heading: _Part | None = None
    for part in _parts(document.text, corpus.kind_of(document.source)):
        if part.heading:
            heading = part
            continue
        if not _PROSE.match(part.text):
            continue
        found = sentences(part.text)
        if heading is not None and found and _words(heading.text) >= 2:
            yield _Candidate(
                place, heading.start, heading.end, heading.text, (found[0],), heading=True
            )
        heading = None
        middle = [
            number
            for number in range(1, len(found) - 1)
            if _words(found[number]) >= FEWEST_WORDS and len(found[number]) <= MOST_CHARACTERS
        ]
        for number in middle[:1]:
            words = r"\s+".join(map(re.escape, found[number].split()))
            if there := re.search(words, part.text):
                yield _Candidate(
                    place,
                    part.start + there.start(),
                    part.start + there.end(),
                    found[number],
                    (found[number - 1], found[number + 1]),
                )


def _words(text: str) -> float:
    return len(text.split()) + len(_CJK.findall(text)) / 2


@dataclass(frozen=True)
class _Part:
    """A paragraph, or the part of a heading that must be deleted to remove its text."""

    start: int
    end: int
    text: str
    heading: bool = False


def _parts(text: str, kind: str) -> Iterator[_Part]:
    """Yield paragraphs and headings, but not blocks of code."""
    lines = text.split("\n")
    starts = [0, *accumulate(len(line) + 1 for line in lines)]
    headings = {block.line: block for block in blocks(text, kind) if block.title}
    begin, below, fenced = None, 0, False
    for number, line in enumerate([*lines, ""]):
        fence = bool(_FENCE.match(line))
        heading = headings.get(number)
        if begin is not None and (fence or heading or not line.strip()):
            yield _Part(begin, starts[number], text[begin : starts[number]])
            begin = None
        if heading is not None:
            below = max(below, heading.body)
            yield _heading(heading, lines, starts)
        elif number >= below and not fence and not fenced and line.strip() and begin is None:
            begin = starts[number]
        fenced ^= fence


def _heading(block: Block, lines: list[str], starts: list[int]) -> _Part:
    """Return a heading without a mark such as ``##``, so that the section stays a section."""
    line = lines[block.line]
    if found := _HEADING.match(line):
        at = starts[block.line]
        return _Part(at + found.start(2), at + found.end(2), found[2], heading=True)
    if not line.startswith(block.title) and (place := line.find(block.title)) >= 0:
        at = starts[block.line] + place
        return _Part(at, at + len(block.title), block.title, heading=True)
    return _Part(starts[block.line], starts[block.body], block.title, heading=True)


# -- judging -------------------------------------------------------------------------------------


class Truth:
    """For each question, the passages that answer it, for documents cut in one way."""

    def __init__(
        self,
        questions: Sequence[Question],
        sources: Sequence[str],
        lines: Sequence[int],
        texts: Iterable[str],
        lasts: Sequence[int] | None = None,
        kept: Sequence[int] | None = None,
    ) -> None:
        """Look for the answers in passages. All but the questions have one item per passage.

        Args:
            questions: The questions.
            sources: The source of each passage.
            lines: The first line of each passage, counted from 1.
            texts: The text of each passage.
            lasts: The last line of each passage, if known. Without it, a line belongs to the last
                passage that begins before it.
            kept: The passages that are searched, one for each distinct text; ``name`` takes indices
                into it. A passage is right if one of its copies is.
        """
        self._lasts = lasts
        self._kept = kept
        self._sources = list(sources)
        self._lines = list(lines)
        self._texts = [one_line(text) for text in texts]
        self._of: dict[str, list[int]] = {}
        for place, source in enumerate(self._sources):
            self._of.setdefault(source, []).append(place)
        self._copies: dict[str, list[int]] = {}
        if kept is not None:
            for place, text in enumerate(self._texts):
                self._copies.setdefault(text, []).append(place)
        self._names = [self._answering(question) for question in questions]
        self._by_source = [question.by_source for question in questions]
        searched = range(len(self._texts)) if kept is None else kept
        self.right = [
            {names[place] for place in searched if place in names} for names in self._names
        ]
        """For each question, the names that answer it. Empty if no passage contains the answer."""

    def name(self, question: int, place: int) -> str:
        """Return the name under which a passage is judged for a question.

        All passages with the same answer have one name, so that short or overlapping passages do
        not count twice.
        """
        place = place if self._kept is None else self._kept[place]
        found = self._names[question].get(place)
        if found is not None:
            return found
        return f"s{self._sources[place]}" if self._by_source[question] else f"p{place}"

    def _answering(self, question: Question) -> dict[int, str]:
        names: dict[int, str] = {}
        for number, answer in enumerate(question.answers):
            if answer.whole:
                found = self._of.get(str(answer.source), [])
                names |= dict.fromkeys(found, f"s{answer.source}")
            else:
                names |= dict.fromkeys(self._places(answer), f"a{number}")
        for place, name in [*names.items()]:
            for copy in self._copies.get(self._texts[place], ()):
                names.setdefault(copy, name)
        return names

    def _places(self, answer: Answer) -> list[int]:
        where = (
            range(len(self._texts)) if answer.source is None else self._of.get(answer.source, [])
        )
        if answer.line is None:
            quotes = [one_line(quote) for quote in answer.quotes]
            return [i for i in where if any(quote in self._texts[i] for quote in quotes)]
        begun = [i for i in where if self._lines[i] <= answer.line] or list(where)[:1]
        if self._lasts is not None and (
            holding := [i for i in begun if self._lasts[i] >= answer.line >= self._lines[i]]
        ):
            return holding
        last = max((self._lines[i] for i in begun), default=0)
        return [i for i in begun if self._lines[i] == last]
