"""``nexusflow demo``, ``index``, ``ask`` and ``search``: texts indexed, questions answered."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nexusflow_integrations._core.needed import needed
from nexusflow_integrations.cli.ask_screen import AskScreen
from nexusflow_integrations.cli.exits import UsageProblem
from nexusflow_integrations.cli.options import (
    DimensionsOption,
    JsonOption,
    LocalOption,
    StoreOption,
    print_json,
)
from nexusflow_integrations.cli.rag import corpus as corpora
from nexusflow_integrations.cli.rag.endpoint import has_key
from nexusflow_integrations.cli.rag.indexes import Indexes
from nexusflow_integrations.cli.rag.pipeline import FRAMEWORKS, Chat, Passage
from nexusflow_integrations.cli.rag.questions import QUESTIONS
from nexusflow_integrations.cli.rag.session import (
    CUTS,
    Filled,
    Found,
    Session,
    agree,
    hit_rates,
    reopened,
    session,
)

if TYPE_CHECKING:
    from nexusflow_integrations.cli.rag.keywords import Keywords

__all__ = ["ask", "demo", "index", "search"]

DEFAULT_QUESTION = "How do I pick a random item from a list?"
_LANGUAGES = {"en": "English", "zh": "Chinese"}
_CHAT_VARIABLE = "NEXUSFLOW_CHAT_MODEL"


class Framework(str, Enum):
    """What ``--framework`` takes."""

    langchain = "langchain"
    llama_index = "llama-index"
    chroma = "chroma"
    all = "all"

    def names(self) -> tuple[str, ...]:
        """Return the short names that it stands for."""
        return tuple(FRAMEWORKS) if self is Framework.all else (self.value,)


LimitOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Maximum number of documents. [dim]Default: 500 of stdlib, else all.[/dim]"
    ),
]
TopOption = Annotated[
    int, typer.Option("--top-k", "-k", min=1, max=50, help="Number of passages to find.")
]
ChatOption = Annotated[
    str | None,
    typer.Option(
        help="Chat model that writes the answer, such as qwen3.5-plus; without one the answer is"
        f" quoted from the passages. [dim]Or {_CHAT_VARIABLE}.[/dim]"
    ),
]
Bm25Option = Annotated[bool, typer.Option("--bm25", help="Also show the hits of BM25.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Rebuild the index.")]
IndexOption = Annotated[
    str | None,
    typer.Option(
        "--index",
        "-i",
        help="Name of the index, or its beginning. [dim]Default: the one used last.[/dim]",
    ),
]
AskedFramework = Annotated[
    Framework | None,
    typer.Option("--framework", "-f", help="Default: the first that the index was filled through."),
]


def demo(
    question: Annotated[str, typer.Option("--question", "-q", help="In any language.")] = (
        DEFAULT_QUESTION
    ),
    corpus: Annotated[
        str,
        typer.Option(
            "--corpus",
            "-c",
            help="[bold]stdlib[/bold] (Python's docstrings), [bold]topics[/bold] (its reference),"
            " or a folder of Markdown or text.",
        ),
    ] = "stdlib",
    framework: Annotated[Framework, typer.Option("--framework", "-f")] = Framework.all,
    limit: LimitOption = None,
    top_k: TopOption = 3,
    bm25: Bm25Option = False,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Score a fixed set of questions, also with BM25.")
    ] = False,
    dimensions: DimensionsOption = None,
    chat_model: ChatOption = None,
    local: LocalOption = False,
    fresh: FreshOption = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question over a real corpus through LangChain, LlamaIndex and Chroma.

    Needs no key and no internet: without NEXUSFLOW_API_KEY a small model runs on this machine,
    behind the same protocol. What was indexed is kept, so the second run pays nothing.
    """
    if evaluate and corpus != "stdlib":
        raise UsageProblem(
            "the fixed questions are about the standard library: use --corpus stdlib"
        )
    _check_chat(chat_model, embedded=local or not has_key())
    screen = AskScreen(quiet=as_json)
    texts = corpora.load(corpus, limit)
    keywords = _keywords(texts.documents) if bm25 or evaluate else None
    indexes = Indexes(store)
    with session(
        lambda endpoint: indexes.place(corpus, texts.name, endpoint),
        framework.names(),
        local=local or None,
        dimensions=dimensions,
    ) as opened:
        chat = _chat(chat_model, opened)
        if fresh:
            opened.index.remove()
        screen.setting(opened.endpoint, texts, opened.index)
        filled = _fill(screen, opened, texts)
        opened.describe(texts, _source(corpus))
        found = [opened.search(name, question, top_k) for name in opened.frameworks]
        screen.question(question)
        screen.passages(found[0].passages)
        beside = keywords.search(question, top_k) if keywords and bm25 else None
        if beside is not None:
            screen.beside(found[0].passages, beside)
        answers = _answer(screen, opened, found, question, chat)
        screen.comparison(found, filled)
        scores = _evaluate(screen, opened, keywords) if evaluate and keywords else None
        screen.cost(opened.usage(), opened.endpoint)
        screen.next(_next_lines(corpus, evaluate, chat, opened))
        if as_json:
            print_json(
                _found_json(opened, question, found, answers, beside)
                | {"corpus": {"name": texts.name, "title": texts.title}}
                | {"indexed": {name: _filled_json(work) for name, work in filled.items()}}
                | ({"hit_rates": scores} if scores else {})
            )


def index(
    path: Annotated[
        str, typer.Argument(help="A folder or file of Markdown or text; or stdlib, or topics.")
    ],
    framework: Annotated[Framework, typer.Option("--framework", "-f")] = Framework.chroma,
    limit: LimitOption = None,
    dimensions: DimensionsOption = None,
    local: LocalOption = False,
    fresh: FreshOption = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Index texts, for `ask` and `search`; run again, it pays only for what is new."""
    screen = AskScreen(quiet=as_json)
    texts = corpora.load(path, limit)
    indexes = Indexes(store)
    with session(
        lambda endpoint: indexes.place(path, texts.name, endpoint),
        framework.names(),
        local=local or None,
        dimensions=dimensions,
    ) as opened:
        if fresh:
            opened.index.remove()
        screen.setting(opened.endpoint, texts, opened.index)
        filled = _fill(screen, opened, texts)
        opened.describe(texts, _source(path))
        screen.cost(opened.usage(), opened.endpoint)
        screen.next(
            [('nexusflow ask "…"', "answer from it"), ('nexusflow search "…"', "find in it")]
        )
        if as_json:
            print_json(
                {
                    "index": opened.index.name,
                    "corpus": {"name": texts.name, "title": texts.title},
                    "skipped": list(texts.skipped),
                    "indexed": {name: _filled_json(work) for name, work in filled.items()},
                    "cost": _cost_json(opened),
                }
            )


def ask(
    question: Annotated[str, typer.Argument(help="In any language.")],
    index: IndexOption = None,
    framework: AskedFramework = None,
    top_k: TopOption = 3,
    bm25: Bm25Option = False,
    chat_model: ChatOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question from an index made by `index` or `demo`."""
    _ask(question, index, framework, top_k, bm25, chat_model, store, as_json, answer=True)


def search(
    question: Annotated[str, typer.Argument(help="What to look for, in any language.")],
    index: IndexOption = None,
    framework: AskedFramework = None,
    top_k: TopOption = 5,
    bm25: Bm25Option = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the passages of an index that are nearest to a question."""
    _ask(question, index, framework, top_k, bm25, None, store, as_json, answer=False)


def _ask(
    question: str,
    index: str | None,
    framework: Framework | None,
    top_k: int,
    bm25: bool,
    chat_model: str | None,
    store: Path | None,
    as_json: bool,
    *,
    answer: bool,
) -> None:
    screen = AskScreen(quiet=as_json)
    chosen = Indexes(store).find(index)
    _check_chat(chat_model, embedded=chosen.about().local_model is not None)
    with reopened(chosen, framework.names() if framework else ()) as opened:
        chat = _chat(chat_model, opened) if answer else None
        with screen.waiting(f"opening {opened.index.name} …"):
            found = [opened.search(name, question, top_k) for name in opened.frameworks]
        keywords = _keywords(opened.documents()) if bm25 else None
        screen.question(question)
        screen.passages(found[0].passages)
        beside = keywords.search(question, top_k) if keywords else None
        if beside is not None:
            screen.beside(found[0].passages, beside)
        answers = _answer(screen, opened, found, question, chat) if answer else None
        if len(found) > 1:
            screen.comparison(found, {})
        screen.cost(opened.usage(), opened.endpoint, brief=True)
        if as_json:
            print_json(_found_json(opened, question, found, answers, beside))


# -- steps that commands share -------------------------------------------------------------------


def _source(corpus: str) -> str:
    return corpus if corpus in ("stdlib", "topics") else os.path.realpath(corpus)


def _keywords(documents: Sequence[corpora.Document]) -> Keywords:
    with needed("BM25", "bm25s", "Stemmer", install="bm25s[stem]"):
        from nexusflow_integrations.cli.rag.keywords import Keywords
    return Keywords(documents)


def _check_chat(model: str | None, *, embedded: bool) -> None:
    if model and embedded:
        raise UsageProblem("the embedded server has no chat model: set NEXUSFLOW_API_KEY for one")


def _chat(model: str | None, opened: Session) -> Chat | None:
    model = model or os.environ.get(_CHAT_VARIABLE)
    if not model or opened.endpoint.local_model:
        return None
    return Chat(model, opened.endpoint.base_url, opened.endpoint.api_key)


def _fill(screen: AskScreen, opened: Session, texts: corpora.Corpus) -> dict[str, Filled]:
    filled: dict[str, Filled] = {}
    with screen.indexing(opened.frameworks, len(texts.documents)) as bars:
        for name in opened.frameworks:
            bars.importing(name)
            opened.open(name)
            bars.began(name)
            filled[name] = opened.fill(name, texts, partial(bars.advanced, name))
            bars.ended(name, filled[name])
    return filled


def _answer(
    screen: AskScreen, opened: Session, found: list[Found], question: str, chat: Chat | None
) -> list[dict[str, Any]]:
    if chat is not None:
        return [
            {
                "kind": "written",
                "model": chat.model,
                "framework": item.framework,
                "text": screen.written(
                    opened.write(item, question, chat), chat.model, item.framework
                ),
            }
            for item in found
        ]
    quotes = opened.quote(question, found[0].passages)
    screen.quotes(quotes)
    text = " ".join(f"“{item.text}” [{item.passage}]" for item in quotes)
    return [{"kind": "quoted", "text": text, "quotes": [asdict(item) for item in quotes]}]


def _evaluate(
    screen: AskScreen, opened: Session, keywords: Keywords
) -> dict[str, dict[str, dict[str, float]]]:
    asked = {
        language: [item for item in QUESTIONS if item.language == language]
        for language in _LANGUAGES
    }
    searches = {"BM25": keywords.search}
    for name in opened.frameworks:
        searches[FRAMEWORKS[name]] = opened.pipelines[name].search
    rates: dict[str, dict[str, tuple[float, ...]]] = {}
    with screen.waiting(f"asking {len(QUESTIONS)} questions …"):
        for method, find in searches.items():
            rates[method] = {
                language: hit_rates(questions, find) for language, questions in asked.items()
            }
    titles = {language: f"{_LANGUAGES[language]} ({len(asked[language])})" for language in asked}
    screen.scores(
        [
            (method, {titles[language]: found for language, found in by_language.items()})
            for method, by_language in rates.items()
        ],
        "The questions are fixed and in everyday words. BM25 cannot follow a Chinese question"
        " into English texts.",
    )
    return {
        method: {
            language: {f"hit@{cut}": round(rate, 4) for cut, rate in zip(CUTS, found, strict=True)}
            for language, found in by_language.items()
        }
        for method, by_language in rates.items()
    }


def _next_lines(
    corpus: str, evaluate: bool, chat: Chat | None, opened: Session
) -> list[tuple[str, str]]:
    example = "怎样比较两段文本？" if corpus == "stdlib" else "…"
    lines = [(f'nexusflow ask "{example}"', "ask this index something else")]
    if corpus == "stdlib" and not evaluate:
        lines.append(("nexusflow demo --evaluate", f"{len(QUESTIONS)} questions, beside BM25"))
    lines.append(("nexusflow index FOLDER", "your own Markdown or text"))
    if opened.endpoint.local_model:
        lines.append(("export NEXUSFLOW_API_KEY=…", "the same with text-embedding-v4"))
    elif chat is None:
        lines.append(("--chat-model qwen3.5-plus", "an answer that is written"))
    return lines


# -- JSON ----------------------------------------------------------------------------------------


def _passages_json(passages: Sequence[Passage]) -> list[dict[str, Any]]:
    return [asdict(item) for item in passages]


def _filled_json(filled: Filled) -> dict[str, Any]:
    return {
        "added": filled.added,
        "seconds": round(filled.seconds, 3),
        "tokens": filled.usage.tokens,
        "requests": filled.usage.requests,
    }


def _cost_json(opened: Session) -> dict[str, Any]:
    usage = opened.usage()
    return {
        "tokens": usage.tokens,
        "requests": usage.requests,
        "cached": usage.cached,
        # With the embedded model nothing is paid: it is what the service lists.
        "list_price": usage.cost,
        "currency": usage.currency,
        "paid": opened.endpoint.local_model is None,
    }


def _found_json(
    opened: Session,
    question: str,
    found: list[Found],
    answers: list[dict[str, Any]] | None,
    beside: list[Passage] | None,
) -> dict[str, Any]:
    endpoint = opened.endpoint
    return {
        "question": question,
        "index": opened.index.name,
        "endpoint": {
            "base_url": endpoint.base_url,
            "model": endpoint.local_model or "text-embedding-v4",
            "embedded": endpoint.local_model is not None,
            "dimensions": endpoint.dimensions,
        },
        "frameworks": {
            item.framework: {
                "seconds": round(item.seconds, 4),
                "passages": _passages_json(item.passages),
            }
            for item in found
        },
        "agree": agree(found),
        **({"bm25": _passages_json(beside)} if beside is not None else {}),
        **({"answers": answers} if answers is not None else {}),
        "cost": _cost_json(opened),
    }
