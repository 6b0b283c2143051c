"""Checks the arguments of ``Tuning``; each error names its argument."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

from nexusflow_integrations._core import checks
from nexusflow_integrations._core.models import model_named
from nexusflow_integrations._core.texts import no_rows
from nexusflow_integrations.client import NexusFlow
from nexusflow_integrations.errors import ConfigurationError
from nexusflow_integrations.tune.questions import Answer, Document, Question


def sizes_of(given: Sequence[int] | None, client: NexusFlow) -> tuple[int, ...]:
    """Return the sizes, largest first; by default all sizes of the model.

    Raises:
        ConfigurationError: The model has no such size, its sizes are unknown, or there are none.
    """
    known = model_named(client.model).sizes
    if given is None:
        if not known:
            raise ConfigurationError(f"the sizes of {client.model!r} are unknown: pass sizes=...")
        return known
    sizes = {client.resized(size).dimensions or 0 for size in items_of("sizes", given)} - {0}
    if not sizes:
        raise ConfigurationError("sizes is empty: give at least one size")
    return tuple(sorted(sizes, reverse=True))


def items_of(name: str, given: Iterable[Any]) -> tuple[Any, ...]:
    """Return the items of a list or set.

    Raises:
        ConfigurationError: ``given`` is a text, a mapping or a table, or not iterable.
    """
    fits = isinstance(given, (set, frozenset)) or no_rows(given) is None
    if not fits or not isinstance(given, Iterable):
        raise checks.refuse(name, "a list", given)
    return tuple(given)


def texts_of(name: str, given: Iterable[str]) -> tuple[str, ...]:
    """Return the texts of a list.

    Raises:
        ConfigurationError: ``given`` is not a list of texts.
    """
    items = enumerate(items_of(name, given))
    return tuple(checks.text(f"{name}: item {number}", item) for number, item in items)


def documents_of(given: Mapping[str, str] | Iterable[tuple[str, str]]) -> list[Document]:
    """Return the documents of a mapping or of pairs.

    Raises:
        ConfigurationError: An item is not a pair of texts, or no document has any text.
    """
    pairs = given.items() if isinstance(given, Mapping) else given
    if isinstance(pairs, str) or not isinstance(pairs, Iterable):
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


def questions_of(given: Iterable[Question]) -> list[Question]:
    """Return the questions of a list.

    Raises:
        ConfigurationError: An item is not a `Question` with valid answers.
    """
    if (advice := no_rows(given, "question")) is not None or not isinstance(given, Iterable):
        raise ConfigurationError(
            f"questions must be a list of questions, not {advice or type(given).__name__}"
        )
    questions = list(given)
    for number, item in enumerate(questions):
        if not isinstance(item, Question):
            raise ConfigurationError(
                f"questions: item {number} must be a Question of nexusflow_integrations.tune, not"
                f" {type(item).__name__}"
            )
        if not (
            isinstance(item.text, str)
            and isinstance(item.answers, (tuple, list))
            and all(map(_is_answer, item.answers))
        ):
            raise ConfigurationError(
                f"questions: item {number} is invalid: a Question needs a text and a tuple of"
                " Answers; each Answer needs a source, a line number or quotes (a tuple of texts)"
            )
    return questions


def _is_answer(answer: object) -> bool:
    return (
        isinstance(answer, Answer)
        and isinstance(answer.source, str | None)
        and (answer.line is None or isinstance(answer.line, Integral))
        and isinstance(answer.quotes, (tuple, list))
        and all(isinstance(quote, str) for quote in answer.quotes)
    )
