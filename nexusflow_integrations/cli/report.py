"""``nexusflow report``: one HTML file about a collection."""

from __future__ import annotations

import re
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nexusflow_integrations._core.counts import count
from nexusflow_integrations.cli import rows
from nexusflow_integrations.cli.exits import UsageProblem
from nexusflow_integrations.cli.options import JsonOption, LocalOption, StoreOption, print_json
from nexusflow_integrations.cli.outputs import check_ending, check_output, check_page
from nexusflow_integrations.cli.rag.collection import DamagedError, chroma_client, open_to_read
from nexusflow_integrations.cli.rag.endpoint import Endpoint, open_endpoint
from nexusflow_integrations.cli.rag.indexes import Indexes
from nexusflow_integrations.cli.rag.questions import QUESTIONS
from nexusflow_integrations.cli.rag.session import CUTS, is_of_this_endpoint, reopened
from nexusflow_integrations.cli.screen import Screen
from nexusflow_integrations.cli.words import as_typed, is_address, printable
from nexusflow_integrations.errors import ConfigurationError

if TYPE_CHECKING:
    from chromadb.api.models.Collection import Collection

    from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
    from nexusflow_integrations.report import Question, Report
    from nexusflow_integrations.tune import questions as tuned

__all__ = ["report"]


_LINE = re.compile(r"(.+):(\d+)")


@dataclass(frozen=True)
class _Asked:
    """A line of the questions file.

    Attributes:
        where: The file and the line, for messages.
        text: The question.
        expected: Ids of documents that answer it.
        record: The line, which may instead name a source or a quote.
    """

    where: str
    text: str
    expected: list[str]
    record: dict[str, Any]


class ProjectionName(str, Enum):
    """The values of ``--projection``."""

    auto = "auto"
    pca = "pca"
    tsne = "tsne"


def report(
    collection: Annotated[
        str | None,
        typer.Argument(
            metavar="COLLECTION",
            help="Name of a Chroma collection, or, without --path, of an index made by `index` or"
            " `demo`. [dim]Default: the index of this folder, else the last one used.[/dim]",
        ),
    ] = None,
    index: Annotated[
        str | None,
        typer.Option(
            "--index",
            "-i",
            help="Name of an index made by `index` or `demo`, or its beginning.",
        ),
    ] = None,
    path: Annotated[
        Path | None,
        typer.Option("--path", "-p", file_okay=False, help="Folder of a Chroma PersistentClient."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", dir_okay=False, help="The HTML file to write.")
    ] = Path("report.html"),
    questions: Annotated[
        Path | None,
        typer.Option(
            "--questions",
            "-q",
            dir_okay=False,
            help='Questions to ask, one per line, or JSONL: {"question": …, "expected": \\[ids]},'
            ' or with "source" or "quote", as for `tune`. [dim]Default: for stdlib, 34 questions;'
            " else none.[/dim]",
        ),
    ] = None,
    source: Annotated[
        str, typer.Option(help="Metadata field that names where a document comes from.")
    ] = "source",
    limit: Annotated[
        int, typer.Option(min=1, help="Maximum number of points; a larger collection is sampled.")
    ] = 10_000,
    projection: Annotated[ProjectionName, typer.Option(help="Projection method of the map.")] = (
        ProjectionName.auto
    ),
    local: LocalOption = False,
    open_it: Annotated[
        bool, typer.Option("--open", help="Open the report in the browser.")
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write one HTML file about a collection: failed questions, duplicates, outliers, map, cost.

    The file needs no network. Questions are embedded and paid for, and with them up to three short
    documents, to check whether the model is the same. Without questions, nothing is sent.
    """
    check_output(output, questions)
    if output.is_file() and output.suffix.lower() not in (".html", ".htm"):
        raise UsageProblem(f"{str(output)!r} exists and is not an HTML file: choose another name")
    check_ending(output, ".html", ".htm")
    check_page(output)
    if index is not None and (collection is not None or path is not None):
        raise UsageProblem("--index names an index: leave out COLLECTION and --path")
    from nexusflow_integrations.report import write_report

    screen = Screen(quiet=as_json)
    asked = None if questions is None else _questions(questions)
    opening = (
        _from_path(path, collection, asked, local, source)
        if path is not None
        else _from_index(store, index or collection, asked, source)
    )
    with opening as (found, function, chosen, title, model), screen.waiting(f"reading {title} …"):
        done = write_report(
            found,
            output,
            questions=chosen,
            embedding_function=function,
            source=source,
            limit=limit,
            projection=projection.value,
            title=title,
            model=model,
        )
    _show(screen, done, title, local=model is not None)
    if as_json:
        print_json(
            {
                "path": str(done.path),
                "points": done.points,
                "total": done.total,
                "projection": done.projection,
                "model": done.model,
                "endpoint": done.endpoint,
                "ranks": list(done.ranks),
                "tokens": done.usage.tokens,
                "list_price": 0.0 if model else done.usage.cost,
                "currency": done.usage.currency,
                "paid": not model,
            }
        )
    if open_it and not webbrowser.open(done.path.resolve().as_uri()):
        screen.err.print("No browser could be opened: open the file yourself.")


_Opened = tuple[
    "Collection", "NexusFlowEmbeddingFunction | None", "Sequence[Question]", str, "str | None"
]
"""The collection, its embedding function, the questions, the title, and a local model's name."""


@contextmanager
def _from_path(
    path: Path, name: str | None, asked: Sequence[_Asked] | None, local: bool, source: str
) -> Iterator[_Opened]:
    if not (path / "chroma.sqlite3").is_file():
        hint = ": only folders are read, not addresses" if is_address(path) else ""
        raise UsageProblem(f"the folder {as_typed(path)!r} holds no Chroma collections{hint}")
    try:
        client = chroma_client(path)
    except DamagedError as error:
        raise UsageProblem(f"Chroma cannot read the folder {str(path)!r}: {error}") from None
    names = sorted(item.name for item in client.list_collections())
    if name is None and len(names) == 1:
        name = names[0]
    if name is None or name not in names:
        problem = "which collection?" if name is None else f"there is no collection named {name!r};"
        raise UsageProblem(f"{problem} there are: {', '.join(names) or 'none'}")
    collection = client.get_collection(name, embedding_function=None)
    chosen = _judged(asked or (), collection, source)
    if not (local and chosen):
        yield collection, None, chosen, name, None
        return
    with open_endpoint(local=True) as endpoint:
        yield collection, _function(endpoint), chosen, name, endpoint.local_model


@contextmanager
def _from_index(
    store: Path | None, name: str | None, asked: Sequence[_Asked] | None, source: str
) -> Iterator[_Opened]:
    from nexusflow_integrations.report import Question

    index = Indexes(store).find(name, Path.cwd(), is_of_this_endpoint)
    about = index.about()
    try:
        collection = open_to_read(index.chroma)
    except DamagedError as error:
        raise index.damaged(str(error)) from None
    chosen = _judged(asked or (), collection, source)
    if asked is None and about.corpus == "stdlib":
        content = collection.get(include=["metadatas"])
        sources = [str((note or {}).get("source")) for note in content["metadatas"] or []]
        chosen = [
            Question(
                item.text,
                [key for key, of in zip(content["ids"], sources, strict=True) if item.accepts(of)],
            )
            for item in QUESTIONS
        ]
    if not chosen:
        yield collection, None, (), about.title, about.local_model
        return
    with reopened(index) as opened:
        yield collection, _function(opened.endpoint), chosen, about.title, about.local_model


def _function(endpoint: Endpoint) -> NexusFlowEmbeddingFunction:
    from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction

    return NexusFlowEmbeddingFunction(
        endpoint.api_key, api_base=endpoint.base_url, **endpoint.vectors
    )


def _questions(path: Path) -> list[_Asked]:
    rows.check_input(path, "file")
    asked = []
    with path.open("rb") as file:
        lines = (
            rows.lines_of_json(file, "question")
            if path.suffix.lower() in (".jsonl", ".ndjson")
            else rows.lines_of_text(file)
        )
        for line in lines:
            expected = line.record.get("expected", [])
            expected = [expected] if isinstance(expected, str) else expected
            problem = line.problem
            if not problem and not (isinstance(line.text, str) and line.text.strip()):
                problem = "holds no question"
            if not problem and not isinstance(expected, list):
                problem = "'expected' is not a list of ids"
            where = f"{path.name}, line {line.number}"
            if problem:
                raise ConfigurationError(f"{where}: {problem}")
            ids = [str(item) for item in expected]
            asked.append(_Asked(where, line.text, ids, line.record))
    if not asked:
        raise ConfigurationError(f"{path.name} has no questions")
    return asked


def _judged(asked: Sequence[_Asked], collection: Collection, source: str) -> list[Question]:
    """Return the questions with the ids that answer them.

    Args:
        asked: The questions.
        collection: It is read only if a question names a source or a quote.
        source: The metadata field that names where a document comes from.

    Raises:
        ConfigurationError: A source or a quote is not in the collection.
    """
    from nexusflow_integrations.report import Question
    from nexusflow_integrations.tune import questions as tuned

    if not any(item.record.keys() & {"source", "quote"} for item in asked):
        return [Question(item.text, item.expected) for item in asked]
    content = collection.get(include=["documents", "metadatas"])
    ids, texts = content["ids"], [text or "" for text in content["documents"] or []]
    sources, lines = [], []
    for note in content["metadatas"] or []:
        name = str((note or {}).get(source, ""))
        place = _LINE.fullmatch(name)  # an index stores `guide.md:12`
        sources.append(place[1] if place else name)
        lines.append(int(place[2]) if place else 1)
    questions = [_answered(item, set(sources)) for item in asked]
    truth = tuned.Truth(questions, sources, lines, texts)
    chosen = []
    for number, item in enumerate(asked):
        right = truth.right[number]
        if questions[number].answers and not right:
            raise ConfigurationError(
                f"{item.where}: no text of the collection contains the whole quote: shorten it, or"
                " name its source instead"
            )
        found = [
            name for place, name in enumerate(ids) if right and truth.name(number, place) in right
        ]
        chosen.append(Question(item.text, [*item.expected, *found]))
    return chosen


def _answered(item: _Asked, sources: set[str]) -> tuned.Question:
    """Return the question with its answers, each of which names one of ``sources`` or none."""
    from nexusflow_integrations.tune import questions as tuned

    try:
        answers = tuned.answers_in(item.record, sources)
    except ValueError as error:
        raise ConfigurationError(f"{item.where}: {error}") from None
    for answer in answers:
        if answer.source is not None and answer.source not in sources:
            raise ConfigurationError(
                f"{item.where}: no text of the collection has the source {answer.source!r}; if"
                " several files have the same text, `index` stores only the first: name that file,"
                " or give a 'quote'"
            )
    return tuned.Question(item.text, answers)


def _show(screen: Screen, report: Report, title: str, *, local: bool) -> None:
    """Show a summary of the report. ``local`` is whether a known local model made the vectors."""
    texts = f"{report.points:,} of {report.total:,} texts"
    if report.total == report.points:
        texts = count(report.points, "text")
    screen.out.print(f"{texts}, map by {report.projection}: {printable(str(report.path))}")
    vectors = ""
    if report.model is not None:
        where = f" at {report.endpoint}" if report.endpoint else ""
        if report.endpoint == "localhost":
            # Any server, also a stand-in, can serve a model under the name of the service's model.
            where = " on this machine" + ("" if local else " (the server there gave this name)")
        vectors = f", vectors of {report.model}{where}"
    screen.out.print(f"{printable(title)}{vectors}")
    judged = len(report.ranks)
    if judged:
        hits = [f"{sum(rank <= most for rank in report.ranks) / judged:.2f}" for most in CUTS]
        rates = ", ".join(f"hit@{cut} {hit}" for cut, hit in zip(CUTS, hits, strict=True))
        sample = ""
        if report.points < report.total:
            sample = (
                f", among the {report.points:,} texts of the sample; among all"
                f" {report.total:,} texts, they may be lower"
            )
        screen.out.print(f"{rates} over {count(judged, 'question')}{sample}")
