"""Read a collection, embed the questions, and write the page."""

from __future__ import annotations

import base64
import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from nexusflow_integrations import __version__
from nexusflow_integrations._core import checks
from nexusflow_integrations._core.texts import check_text, plain_id, rows_of
from nexusflow_integrations._core.usage import Usage
from nexusflow_integrations._core.whole_file import whole
from nexusflow_integrations.client import NexusFlow
from nexusflow_integrations.errors import ConfigurationError, InvalidInputError
from nexusflow_integrations.report import measure
from nexusflow_integrations.report.page import render

if TYPE_CHECKING:
    from chromadb.api.models.Collection import Collection

    from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction

LIMIT = 10_000
HITS = 10
_PAGE = 1000
_STORE_TIMEOUT = 60.0
"""Seconds that one read of the collection may take, including retries."""
_NEAR_DUPLICATE = 0.95
_SHOWN = 12
_CHARACTERS = 8_000_000
"""Maximum number of characters of all texts in the file; longer texts are truncated to fit."""


@dataclass(frozen=True)
class Question:
    """A question for the retrieval inspector.

    Attributes:
        text: The question.
        expected: Ids of the documents that answer the question, if known.
    """

    text: str
    expected: Iterable[str] = ()


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        path: The file.
        points: Number of documents on the map.
        total: Number of documents in the collection; more than ``points`` if a sample was taken.
        projection: The projection of the map: ``PCA`` or ``t-SNE``.
        ranks: For each question with expected ids, the rank of the first correct document, from 1,
            among the documents on the map. If these are a sample, more documents may come before
            it in the whole collection.
        usage: The tokens, requests and cost of embedding the questions and checking the model.
        model, endpoint: The model and the endpoint that made the vectors, if known.
    """

    path: Path
    points: int
    total: int
    projection: str
    ranks: tuple[int, ...]
    usage: Usage
    model: str | None
    endpoint: str | None


@dataclass
class _Content:
    total: int
    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    vectors: list[Any] = field(default_factory=list)


def write_report(
    collection: Collection,
    path: str | os.PathLike[str],
    *,
    questions: Iterable[str | Question] = (),
    embedding_function: NexusFlowEmbeddingFunction | None = None,
    source: str | None = "source",
    url: str | None = "url",
    limit: int = LIMIT,
    projection: measure.Projection = "auto",
    title: str | None = None,
    model: str | None = None,
) -> Report:
    """Write one self-contained HTML file about a Chroma collection.

    If there are questions, up to three short documents are embedded, too, to check that the
    collection's vectors come from the model that embeds the questions.

    Args:
        collection: The collection; nothing in it is changed.
        path: File to write; an existing file is replaced only when the new one is complete.
        questions: Questions; for each, all shown documents are ranked by exact cosine.
        embedding_function: Embeds the questions. Default: the one stored in the collection.
        source: Name of the metadata field with a document's source; ``None`` if there is none.
        url: Name of the metadata field with an address to link the source to. A source that is
            itself an address needs no such field. Only http, https and file addresses become links.
        limit: Maximum number of points on the map; a larger collection is sampled at random, always
            with the same seed.
        projection: Projection of the map. ``auto`` is t-SNE, or PCA for fewer than 12 points and
            where two dimensions show all of the variance.
        title: Title of the page. Default: the name of the collection.
        model: Name of the model to show, such as that of a local server; no price is shown for it.
            Default: the embedding function's.

    Raises:
        ConfigurationError: An argument is invalid, the collection is empty, an expected id is not
            in it, or its vectors are not those of the embedding function. Only the last check sends
            a request.
        InvalidInputError: ``questions`` is not a list of questions, or a question cannot be sent;
            ``index`` is its position. Nothing was sent.
        ImportError: scikit-learn or openTSNE is missing.
        NexusFlowError: Embedding the questions failed.
    """
    measure.need_packages()  # fail before anything is embedded
    target = _checked(collection, path, embedding_function)
    source, url = checks.optional_text("source", source), checks.optional_text("url", url)
    title, model = checks.optional_text("title", title), checks.optional_text("model", model)
    limit = checks.whole("limit", limit, 1)
    projection = checks.one_of("projection", projection, get_args(measure.Projection))
    asked = [_question(item, place) for place, item in enumerate(rows_of(questions, "question"))]
    content = _read(collection, source, url, limit, asked)
    vectors = measure.unit(np.asarray(content.vectors, np.float32))
    function = embedding_function or _stored(collection, asked)
    inspected, usage, compared = _inspect(collection, function, asked, content, vectors)
    near, low = measure.neighbours(vectors), measure.reduced(vectors)
    layout = measure.project(low, near, projection)
    near = near.first(measure.NEIGHBOURS)
    groupings = [measure.sources(content.sources), measure.clusters(low, content.texts)]
    shown = max(240, min(4000, _CHARACTERS // len(content.ids)))
    free = model is not None
    model = model or (function.model_name if function else None)
    endpoint = function.service if function else None
    data = {
        "title": title or collection.name,
        "collection": collection.name,
        "model": model,
        "endpoint": endpoint,
        "compared": compared,
        "total": content.total,
        "dimensions": int(vectors.shape[1]),
        "made": time.strftime("%Y-%m-%d"),
        "version": __version__,
        "projection": layout.method,
        "kept": round(layout.kept, 4),
        "variance": round(low.flat, 4) if low.shares.any() else None,
        "x": _packed(layout.points[:, 0], "<f4"),
        "y": _packed(layout.points[:, 1], "<f4"),
        "ids": content.ids,
        "texts": [text if len(text) <= shown else f"{text[:shown]} …" for text in content.texts],
        "sources": content.sources,
        "links": content.links if any(content.links) else [],
        "groupings": [
            {
                "label": item.label,
                "names": item.names,
                "of": _packed(item.of, "u1"),
                "colours": measure.colours(item, layout.points),
            }
            for item in groupings
            if item is not None
        ],
        "near": {
            "many": int(near.places.shape[1]),
            "places": _packed(near.places, "<i4"),
            "scores": _packed(near.scores, "<f4"),
        },
        "histogram": measure.histogram(vectors, near),
        "near_duplicates": measure.near_duplicates(near, _NEAR_DUPLICATE, _SHOWN),
        "outliers": measure.outliers(near, _SHOWN),
        "questions": inspected,
        "cost": _cost(content, usage) | {"free": free},
    }
    with whole(target) as file:
        file.write(render(data).encode())
    ranks = tuple(item["rank"] for item in inspected if item["expected"])
    size = len(content.ids)
    return Report(target, size, content.total, layout.method, ranks, usage, model, endpoint)


def _checked(collection: object, path: object, function: object) -> Path:
    """Return the path; refuse arguments of the wrong type, and a path that is a folder."""
    from chromadb.api.models.Collection import Collection

    from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction

    if not isinstance(collection, Collection):
        raise checks.refuse("collection", "a Collection of Chroma", collection)
    if function is not None and not isinstance(function, NexusFlowEmbeddingFunction):
        wanted = "a NexusFlowEmbeddingFunction or None"
        raise checks.refuse("embedding_function", wanted, function)
    if isinstance(path, (str, os.PathLike)) and "\0" not in str(path):
        found = Path(path)
        if found.is_dir():
            raise ConfigurationError(f"path must be the path of a file: {str(found)!r} is a folder")
        return found
    raise checks.refuse("path", "the path of a file", path)


def _question(item: object, place: int) -> Question:
    question = Question(item) if isinstance(item, str) else item
    if not isinstance(question, Question):
        raise InvalidInputError(
            f"question {place} must be a string or a Question of nexusflow_integrations.report, not"
            f" {type(item).__name__}",
            index=place,
        )
    check_text(question.text, place)
    try:
        given: Any = question.expected
        if isinstance(given, (set, frozenset)):
            given = sorted(given, key=str)
        expected = tuple(map(plain_id, rows_of(given, "id")))
    except InvalidInputError as error:
        raise InvalidInputError(f"question {place}: {error}", index=place) from None
    for name in expected:
        if not isinstance(name, str):
            raise InvalidInputError(
                f"question {place}: an expected id must be text, not {type(name).__name__}",
                index=place,
            )
    return replace(question, expected=expected)


def _read(
    collection: Collection,
    source: str | None,
    url: str | None,
    limit: int,
    asked: Sequence[Question],
) -> _Content:
    # Import here: Chroma is not needed for anything else.
    from nexusflow_integrations.chroma_collections.calls import Calls
    from nexusflow_integrations.chroma_collections.pages import Pages, by_ids
    from nexusflow_integrations.chroma_collections.plans import carry_out

    calls = Calls(collection, _STORE_TIMEOUT)
    content = _Content(collection.count())
    names: list[str] = []
    pages = Pages(collection, [])
    while found := carry_out(pages.next(), calls)["ids"]:
        names += found
    if not names:
        raise ConfigurationError(f"the collection {collection.name!r} is empty")
    wanted = _expected(collection.name, set(names), asked)
    if len(names) > limit:
        chosen = set(np.random.default_rng(0).choice(len(names), limit, replace=False).tolist())
        # Keep the expected documents, because their ranks are shown.
        names = [name for place, name in enumerate(names) if place in chosen or name in wanted]
    for start in range(0, len(names), _PAGE):
        part = names[start : start + _PAGE]
        columns = ["embeddings", "documents", "metadatas"]
        page = carry_out(by_ids(collection, part, columns), calls)
        vectors, texts, notes = page["embeddings"], page["documents"], page["metadatas"]
        for place, name in enumerate(page["ids"]):
            content.ids.append(name)
            content.vectors.append(vectors[place])
            content.texts.append(texts[place] or "")
            note = notes[place] or {}
            content.sources.append(str(note.get(source or "", "")))
            content.links.append(_link(str(note.get(url or "") or content.sources[-1])))
    return content


def _expected(name: str, ids: set[str], asked: Sequence[Question]) -> set[str]:
    for question in asked:
        missing = [expected for expected in question.expected if expected not in ids]
        if missing:
            raise ConfigurationError(
                f"the question {question.text!r} expects the id {missing[0]!r}, which is not in the"
                f" collection {name!r}: correct the id, or leave it out"
            )
    return {expected for question in asked for expected in question.expected}


def _link(address: str) -> str:
    """Return ``address`` if it is safe as a link on a page with untrusted text, else ``""``."""
    return address if re.match(r"(https?|file)://[^\s]+$", address) else ""


def _inspect(
    collection: Collection,
    function: NexusFlowEmbeddingFunction | None,
    asked: list[Question],
    content: _Content,
    vectors: measure.Floats,
) -> tuple[list[dict[str, Any]], Usage, int]:
    """Return the questions with their hits, the usage, and how many documents were compared."""
    if not asked:
        return [], Usage(), 0
    if function is None:
        raise ConfigurationError(
            f"the collection {collection.name!r} does not store its embedding function: pass"
            " embedding_function=..."
        )
    before = function.usage.tokens, function.usage.requests
    found = measure.unit(np.asarray(function.embed_query([item.text for item in asked])))
    if found.shape[1] != vectors.shape[1]:
        raise ConfigurationError(
            f"the questions have {found.shape[1]} dimensions and the collection has"
            f" {vectors.shape[1]}: pass the embedding function that filled it"
        )
    compared = _compare(collection, function, content)
    usage = function.usage
    usage = Usage(
        tokens=usage.tokens - before[0], requests=usage.requests - before[1], price=usage.price
    )
    places = {name: place for place, name in enumerate(content.ids)}
    inspected = []
    for question, scores in zip(asked, found @ vectors.T, strict=True):
        order = np.argsort(-scores, kind="stable")
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(1, len(order) + 1)
        right = [places[name] for name in question.expected]
        first = min(right, key=lambda place: rank[place], default=None)
        inspected.append(
            {
                "text": question.text,
                "words": measure.distinctive_words(question.text, content.texts),
                "hits": [[int(at), round(float(scores[at]), 4)] for at in order[:HITS]],
                "expected": list(question.expected),
                "right": right,
                "rank": None if first is None else int(rank[first]),
                "score": None if first is None else round(float(scores[first]), 4),
                "first": first,
            }
        )
    return inspected, usage, compared


def _compare(
    collection: Collection, function: NexusFlowEmbeddingFunction, content: _Content
) -> int:
    """Compare the vectors of the shortest documents with the function's; return how many."""
    from nexusflow_integrations.chroma_collections.verifying import check_same, sampled

    ids, texts, stored = sampled(
        {"ids": content.ids, "documents": content.texts, "embeddings": content.vectors}
    )
    if texts:
        check_same(collection.name, ids, stored, function._uncached()(texts))
    return len(texts)


def _stored(collection: Collection, asked: Sequence[Question]) -> NexusFlowEmbeddingFunction | None:
    from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction

    stored = collection.configuration_json.get("embedding_function") or {}
    if stored.get("name") != NexusFlowEmbeddingFunction.name():
        return None
    try:
        return NexusFlowEmbeddingFunction.build_from_config(stored["config"])
    except ConfigurationError:
        if asked:
            raise
        return None  # the map works without the embedding function


def _cost(content: _Content, usage: Usage) -> dict[str, Any]:
    # An estimate only counts tokens, so it needs neither a key nor the collection's endpoint.
    estimate = NexusFlow("none").estimate([text for text in content.texts if text.strip()])
    return {
        "tokens": estimate.tokens,
        "error": estimate.token_error,
        "price": estimate.cost,
        "currency": estimate.price.currency,
        "million": estimate.price.per_million_tokens,
        "asked_tokens": usage.tokens,
        "asked_price": usage.cost,
        "asked_requests": usage.requests,
    }


def _packed(values: Any, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values).astype(kind).tobytes()).decode()
