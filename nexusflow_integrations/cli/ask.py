"""The commands ``nexusflow demo``, ``index``, ``ask`` and ``search``."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nexusflow_integrations._core.keywords import check_packages
from nexusflow_integrations._core.models import DEFAULT_MODEL
from nexusflow_integrations._core.secret import ApiKey
from nexusflow_integrations._core.settings import resolve_base_url
from nexusflow_integrations._core.texts import is_blank, is_encodable
from nexusflow_integrations._core.tuned import TunedSettings
from nexusflow_integrations._core.usage import Price
from nexusflow_integrations.cli.ask_screen import AskScreen
from nexusflow_integrations.cli.exits import PARTLY, UsageProblem
from nexusflow_integrations.cli.options import (
    BudgetOption,
    ChatPriceOption,
    DimensionsOption,
    EstimateOption,
    JsonOption,
    LocalOption,
    StoreOption,
    cost_json,
    estimate_json,
    print_json,
)
from nexusflow_integrations.cli.options import budget as read_budget
from nexusflow_integrations.cli.options import chat_price as read_chat_price
from nexusflow_integrations.cli.rag import corpus as corpora
from nexusflow_integrations.cli.rag.collection import (
    DamagedError,
    Updated,
    open_to_read,
    plan,
    stored,
)
from nexusflow_integrations.cli.rag.endpoint import Endpoint, default_local_model, has_key
from nexusflow_integrations.cli.rag.indexes import Index, Indexes, UnusableIndexError
from nexusflow_integrations.cli.rag.pipeline import (
    CHAT_VARIABLE,
    FRAMEWORKS,
    Chat,
    ChatPrice,
    ChatTokens,
    Passage,
    chat_of,
    need_chat,
)
from nexusflow_integrations.cli.rag.questions import EXAMPLE, QUESTIONS
from nexusflow_integrations.cli.rag.session import (
    CUTS,
    Found,
    Session,
    agree,
    hit_rates,
    is_of_this_endpoint,
    reopened,
    replaced,
    session,
)
from nexusflow_integrations.cli.words import printable
from nexusflow_integrations.client import NexusFlow

if TYPE_CHECKING:
    from nexusflow_integrations.cli.rag.keywords import Keywords

__all__ = ["ask", "demo", "index", "search"]

DEFAULT_QUESTION = "How do I pick a random item from a list?"
_LANGUAGES = {"en": "English", "zh": "Chinese"}


class Framework(str, Enum):
    """The values of ``--framework``."""

    langchain = "langchain"
    llama_index = "llama-index"
    chroma = "chroma"
    all = "all"

    def names(self) -> tuple[str, ...]:
        """Return the short names of the selected frameworks."""
        return tuple(FRAMEWORKS) if self is Framework.all else (self.value,)


LimitOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Maximum number of passages. [dim]Default: 500 for stdlib, else all.[/dim]"
    ),
]
TopOption = Annotated[
    int, typer.Option("--top-k", "-k", min=1, max=50, help="Number of passages to find.")
]
ChatOption = Annotated[
    str | None,
    typer.Option(
        help="Chat model that writes the answer, such as qwen3.5-plus; without one, the answer is"
        f" quoted from the passages. [dim]Default: the variable {CHAT_VARIABLE}.[/dim]"
    ),
]
Bm25Option = Annotated[bool, typer.Option("--bm25", help="Also show the hits of BM25.")]
HybridOption = Annotated[
    bool | None,
    typer.Option(
        "--hybrid/--no-hybrid",
        show_default=False,
        help="Search by keywords too. [dim]Default: as set by `index`.[/dim]",
    ),
]
FreshOption = Annotated[
    bool,
    typer.Option(
        "--fresh", help="Build a new index; the old one stays in use until the new one is complete."
    ),
]
SettingsOption = Annotated[
    Path | None,
    typer.Option(
        "--settings",
        exists=True,
        dir_okay=False,
        help="Settings file written by `tune`: size, passages, instructions, keywords.",
    ),
]
IndexOption = Annotated[
    str | None,
    typer.Option(
        "--index",
        "-i",
        help="Name of an index, or its beginning. [dim]Default: the index of this folder, else"
        " the last one used.[/dim]",
    ),
]
AskedFramework = Annotated[
    Framework | None,
    typer.Option(
        "--framework",
        "-f",
        metavar="NAME",
        help="Search through langchain, llama-index, chroma or all."
        " [dim]Default: the first one that `index` was run with.[/dim]",
    ),
]


def demo(
    question: Annotated[
        str, typer.Option("--question", "-q", help="Question to ask, in any language.")
    ] = (DEFAULT_QUESTION),
    corpus: Annotated[
        str,
        typer.Option(
            "--corpus",
            "-c",
            help="[bold]stdlib[/bold] (Python's docstrings), [bold]topics[/bold] (its reference),"
            " or a folder of texts.",
        ),
    ] = "stdlib",
    framework: Annotated[
        Framework,
        typer.Option(
            "--framework", "-f", metavar="NAME", help="langchain, llama-index, chroma or all."
        ),
    ] = Framework.all,
    limit: LimitOption = None,
    top_k: TopOption = 3,
    bm25: Bm25Option = False,
    evaluate: Annotated[
        bool,
        typer.Option("--evaluate", help="Score a fixed set of questions, and BM25 for comparison."),
    ] = False,
    dimensions: DimensionsOption = None,
    chat_model: ChatOption = None,
    chat_price: ChatPriceOption = None,
    local: LocalOption = False,
    fresh: FreshOption = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question about a real corpus with LangChain, LlamaIndex and Chroma.

    This needs no key and no internet: without NEXUSFLOW_API_KEY, a small model runs on this
    machine, behind the same API. The index is kept: a second run does not embed the corpus again.
    """
    if evaluate and corpus != "stdlib":
        raise UsageProblem(
            "the fixed questions are about the standard library: use --corpus stdlib"
        )
    _check_question(question)
    _check_chat(chat_model, local=local or not has_key())
    _check_fresh(fresh, limit)
    price = None if chat_price is None else read_chat_price(chat_price)
    if bm25 or evaluate:
        check_packages()
    screen = AskScreen(quiet=as_json)
    texts = corpora.load(corpus, limit)
    indexes = Indexes(store)
    with session(
        lambda endpoint: indexes.place(corpus, texts.name, endpoint),
        framework.names(),
        local=local or None,
        dimensions=dimensions,
    ) as opened:
        chat = _chat(chat_model, opened)
        screen.setting(opened.endpoint, texts, opened.index)
        done = _update(screen, opened, texts, corpus, fresh=fresh)
        keywords = _keywords(opened.documents()) if bm25 or evaluate else None
        with screen.waiting("searching …"):
            found = [opened.search(name, question, top_k) for name in opened.frameworks]
        screen.question(question)
        screen.passages(found[0].passages)
        beside = keywords.search(question, top_k) if keywords and bm25 else None
        if beside is not None:
            screen.beside(found[0].passages, beside)
        answers = _answer(screen, opened, found, question, chat)
        screen.comparison(found)
        scores = _evaluate(screen, opened, keywords) if evaluate and keywords else None
        screen.cost(opened.usage(), opened.endpoint)
        bill = _bill(screen, opened, chat, price, answers, brief=False)
        screen.next(_next_lines(corpus, evaluate, chat, opened, indexes))
        if as_json:
            print_json(
                _found_json(opened, question, found, answers, beside, bill)
                | {"corpus": {"name": texts.name, "title": texts.title}}
                | {"indexed": _updated_json(done)}
                | ({"hit_rates": scores} if scores else {})
            )
    if done.left_out:
        raise typer.Exit(PARTLY)


def index(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A folder or file of texts; or stdlib, or topics.")
    ],
    framework: Annotated[
        Framework,
        typer.Option(
            "--framework",
            "-f",
            metavar="NAME",
            help="What `ask` and `search` use: langchain, llama-index, chroma or all.",
        ),
    ] = Framework.chroma,
    limit: LimitOption = None,
    dimensions: DimensionsOption = None,
    hybrid: Annotated[
        bool | None,
        typer.Option(
            "--hybrid/--no-hybrid",
            show_default=False,
            help="Whether `ask` and `search` use keywords too. [dim]Default: as before; no for a"
            " new index.[/dim]",
        ),
    ] = None,
    settings: SettingsOption = None,
    budget: BudgetOption = None,
    estimate: EstimateOption = False,
    local: LocalOption = False,
    fresh: FreshOption = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Index texts for `ask` and `search`; run it again after they change.

    Only new and changed texts are paid for. Texts that are gone are removed last. Files and
    passages that cannot be read or stored are left out and named; the exit code is then 5.
    """
    _check_fresh(fresh, limit)
    tuned = None if settings is None else TunedSettings.load(settings)
    if tuned is not None:
        if dimensions is not None:
            raise UsageProblem("--settings sets the size, too: leave out --dimensions")
        if tuned.model != DEFAULT_MODEL:
            raise UsageProblem(f"the settings are for {tuned.model!r}, not for {DEFAULT_MODEL!r}")
        if tuned.local_model is not None and has_key() and not local:
            raise UsageProblem(
                f"the settings were measured with the local model {tuned.local_model}: run"
                " `nexusflow tune` with the service, or pass --local"
            )
        hybrid = tuned.hybrid if hybrid is None else hybrid
    if hybrid:
        check_packages()
    most = None if budget is None else read_budget(budget, Price())
    screen = AskScreen(quiet=as_json)
    corpora.check_clear(path)
    texts = corpora.load(path, limit, tuned or TunedSettings())
    indexes = Indexes(store)
    if estimate:
        # Without a key, show the service's price: users want to know it before they get a key.
        endpoint = Endpoint(
            resolve_base_url(),
            ApiKey(""),
            tuned.dimensions if tuned else dimensions,
            default_local_model() if local else None,
            tuned,
        )
        if _estimate(screen, indexes, path, texts, endpoint, fresh, as_json).left_out:
            raise typer.Exit(PARTLY)
        return
    with session(
        lambda endpoint: indexes.place(path, texts.name, endpoint),
        framework.names(),
        local=local or None,
        dimensions=dimensions,
        budget=most,
        hybrid=hybrid,
        tuned=tuned,
    ) as opened:
        screen.setting(opened.endpoint, texts, opened.index)
        done = _update(screen, opened, texts, path, fresh=fresh)
        screen.changes(done)
        screen.cost(opened.usage(), opened.endpoint)
        which = _which(indexes, opened.index)
        screen.next(
            [
                (f'nexusflow ask "…"{which}', "ask a question"),
                (f'nexusflow search "…"{which}', "find passages"),
            ]
        )
        if as_json:
            print_json(
                {
                    "index": opened.index.name,
                    "corpus": {"name": texts.name, "title": texts.title},
                    **_updated_json(done),
                    "cost": _cost_json(opened),
                }
            )
    if done.left_out:
        raise typer.Exit(PARTLY)


def ask(
    question: Annotated[
        str, typer.Argument(metavar="QUESTION", help="Question to answer, in any language.")
    ],
    index: IndexOption = None,
    framework: AskedFramework = None,
    top_k: TopOption = 3,
    hybrid: HybridOption = None,
    bm25: Bm25Option = False,
    chat_model: ChatOption = None,
    chat_price: ChatPriceOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question from an index made by `index` or `demo`."""
    _ask(
        question,
        index,
        framework,
        top_k,
        hybrid,
        bm25,
        chat_model,
        chat_price,
        store,
        as_json,
        answer=True,
    )


def search(
    question: Annotated[
        str, typer.Argument(metavar="QUESTION", help="What to look for, in any language.")
    ],
    index: IndexOption = None,
    framework: AskedFramework = None,
    top_k: TopOption = 5,
    hybrid: HybridOption = None,
    bm25: Bm25Option = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the passages of an index that are nearest to a question."""
    _ask(question, index, framework, top_k, hybrid, bm25, None, None, store, as_json, answer=False)


def _ask(
    question: str,
    index: str | None,
    framework: Framework | None,
    top_k: int,
    hybrid: bool | None,
    bm25: bool,
    chat_model: str | None,
    chat_price: str | None,
    store: Path | None,
    as_json: bool,
    *,
    answer: bool,
) -> None:
    _check_question(question)
    price = None if chat_price is None else read_chat_price(chat_price)
    if bm25:
        check_packages()
    screen = AskScreen(quiet=as_json)
    chosen = Indexes(store).find(index, Path.cwd(), is_of_this_endpoint)
    about = chosen.about()
    if about.local_model is not None and has_key():
        screen.local_index(chosen, about)
    _check_chat(chat_model, local=about.local_model is not None)
    frameworks = framework.names() if framework else ()
    if hybrid is None:
        hybrid = about.hybrid and frameworks in ((), ("chroma",))
    if hybrid:
        frameworks = _hybrid_frameworks(frameworks)
    with reopened(chosen, frameworks) as opened:
        chat = _chat(chat_model, opened) if answer else None
        with screen.waiting(f"opening {opened.index.name} …"):
            found = [
                opened.search(name, question, top_k, hybrid=hybrid) for name in opened.frameworks
            ]
        keywords = _keywords(opened.documents()) if bm25 else None
        screen.question(question)
        screen.asked(opened.index, opened.endpoint)
        if not answer and not found[0].is_close(opened.endpoint.model):
            screen.nothing_close(found[0].passages)
        screen.passages(found[0].passages, hybrid=hybrid)
        beside = keywords.search(question, top_k) if keywords else None
        if beside is not None:
            screen.beside(found[0].passages, beside, hybrid=hybrid)
        answers = _answer(screen, opened, found, question, chat) if answer else None
        if len(found) > 1:
            screen.comparison(found)
        screen.cost(opened.usage(), opened.endpoint, brief=True)
        bill = _bill(screen, opened, chat, price, answers or [], brief=True)
        if as_json:
            print_json(
                _found_json(opened, question, found, answers, beside, bill) | {"hybrid": hybrid}
            )


# -- steps that commands share -------------------------------------------------------------------


def _source(corpus: str) -> str:
    return corpus if corpus in corpora.SAMPLES else os.path.realpath(corpus)


def _hybrid_frameworks(asked: tuple[str, ...]) -> tuple[str, ...]:
    """Return the framework for a hybrid search, and check that its packages are installed."""
    if asked not in ((), ("chroma",)):
        raise UsageProblem("--hybrid searches with Chroma only: leave out --framework")
    check_packages()
    return ("chroma",)


def _keywords(documents: Sequence[corpora.Document]) -> Keywords:
    from nexusflow_integrations.cli.rag.keywords import Keywords

    return Keywords(documents)


def _check_question(question: str) -> None:
    if is_blank(question):
        raise UsageProblem("the question is empty")
    if not is_encodable(question):
        raise UsageProblem("the question is not UTF-8")


def _check_fresh(fresh: bool, limit: int | None) -> None:
    if fresh and limit is not None:
        raise UsageProblem(
            "--fresh rebuilds the whole index and --limit reads only some texts: use one of the two"
        )


def _check_chat(model: str | None, *, local: bool) -> None:
    if model and local:
        what = "use an index of the service" if has_key() else "set NEXUSFLOW_API_KEY for one"
        raise UsageProblem(f"the local server has no chat model: {what}")


def _chat(model: str | None, opened: Session) -> Chat | None:
    """Return the chat model; its packages are checked before anything is sent."""
    chat = chat_of(model, opened.endpoint)
    for framework in opened.frameworks if chat is not None else ():
        need_chat(framework)
    return chat


def _update(
    screen: AskScreen, opened: Session, texts: corpora.Corpus, corpus: str, *, fresh: bool
) -> Updated:
    with screen.indexing(len(texts.documents)) as bar:
        done = opened.update(texts, _source(corpus), fresh=fresh, progress=bar.advanced)
        bar.ended(done, opened.usage())
    screen.left_out(done.left_out)
    return done


def _estimate(
    screen: AskScreen,
    indexes: Indexes,
    path: str,
    texts: corpora.Corpus,
    endpoint: Endpoint,
    fresh: bool,
    as_json: bool,
) -> Updated:
    """Show what `index` would do and cost at ``endpoint``; nothing is sent or written."""
    index = indexes.place(path, texts.name, endpoint)
    documents = {} if fresh else _stored_documents(index)
    wanted = plan(texts, documents, replaced(index) if fresh else None)
    local = endpoint.local_model is not None
    paid = has_key() and not local
    client = NexusFlow(**endpoint.vectors, cache=True if paid else None)
    found = client.estimate(wanted.new())
    changes = wanted.counts()
    screen.changes(
        changes, f"compared with {index.name}" if documents else f"in a new index {index.name}"
    )
    screen.estimate(found, local=local)
    screen.others(texts)
    screen.left_out(changes.left_out)
    if as_json:
        print_json(_updated_json(changes) | estimate_json(found, local=local))
    return changes


def _stored_documents(index: Index) -> dict[str, corpora.Document]:
    folder = index.kept
    if folder is None or not any(folder.iterdir()):
        return {}
    try:
        return stored(open_to_read(folder))
    except DamagedError as error:
        if index.described() is None:
            return {}  # a first run that was stopped before it created the collection
        raise index.damaged(str(error)) from None


def _answer(
    screen: AskScreen, opened: Session, found: list[Found], question: str, chat: Chat | None
) -> list[dict[str, Any]]:
    if chat is not None:
        answers = []
        for item in found:
            pieces = opened.write(item, question, chat)
            text, tokens = screen.written(pieces, chat.model, item.framework)
            answers.append(
                {
                    "kind": "written",
                    "model": chat.model,
                    "framework": item.framework,
                    "text": text,
                    "tokens": None if tokens is None else asdict(tokens),
                }
            )
        return answers
    passages = found[0].passages
    if not found[0].is_close(opened.endpoint.model):
        screen.nothing_close(passages)
        return [{"kind": "none", "text": "", "quotes": []}]
    quotes = opened.quote(question, passages)
    screen.quotes(quotes, passages)
    text = " ".join(f"“{item.text}” [{item.passage}]" for item in quotes)
    return [{"kind": "quoted", "text": text, "quotes": [asdict(item) for item in quotes]}]


def _bill(
    screen: AskScreen,
    opened: Session,
    chat: Chat | None,
    price: ChatPrice | None,
    answers: list[dict[str, Any]],
    *,
    brief: bool,
) -> dict[str, Any]:
    """Show what the chat model cost, and return the cost for JSON; an unknown cost is ``None``."""
    if chat is None:
        return {}
    counts = [answer["tokens"] for answer in answers]
    tokens = cost = None
    if None not in counts:
        tokens = ChatTokens(*(sum(item[name] for item in counts) for name in ("sent", "written")))
        if price is not None:
            cost = price.of(tokens.sent, tokens.written)
    usage = opened.usage()
    screen.chat_cost(chat, tokens, cost, usage, brief=brief)
    return {
        "chat": {
            "model": chat.model,
            "tokens": None if tokens is None else asdict(tokens),
            "price": cost,
        },
        "total_price": None if cost is None else usage.cost + cost,
    }


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
        "The questions are fixed and use everyday words. BM25 cannot follow a Chinese question"
        " into English texts.",
    )
    return {
        method: {
            language: {f"hit@{cut}": round(rate, 4) for cut, rate in zip(CUTS, found, strict=True)}
            for language, found in by_language.items()
        }
        for method, by_language in rates.items()
    }


def _which(indexes: Indexes, index: Index) -> str:
    """Return the options with which `ask` uses ``index`` here; empty if it does anyway."""
    store = _store(indexes)
    with suppress(UnusableIndexError):
        if indexes.find(None, Path.cwd(), is_of_this_endpoint) == index:
            return store
    short = index.name.partition("@")[0]
    with suppress(UnusableIndexError):
        if indexes.find(short, prefer=is_of_this_endpoint) == index:
            return f" --index {short}{store}"
    return f" --index {index.name}{store}"


def _store(indexes: Indexes) -> str:
    """Return the option with which a command uses ``indexes``; empty if it does anyway."""
    usual = os.environ.get("NEXUSFLOW_STORE")
    if indexes.folder == Indexes(Path(usual) if usual else None).folder:
        return ""
    return f" --store {printable(shlex.quote(str(indexes.folder)))}"


def _next_lines(
    corpus: str, evaluate: bool, chat: Chat | None, opened: Session, indexes: Indexes
) -> list[tuple[str, str]]:
    example = EXAMPLE if corpus == "stdlib" else "…"
    which = _which(indexes, opened.index)
    lines = [(f'nexusflow ask "{example}"{which}', "ask this index something else")]
    if corpus == "stdlib" and not evaluate:
        lines.append(
            (
                f"nexusflow demo --evaluate{_store(indexes)}",
                f"{len(QUESTIONS)} questions, beside BM25",
            )
        )
    lines.append(("nexusflow index FOLDER", "your own texts"))
    if opened.endpoint.local_model and not has_key():
        lines.append(("export NEXUSFLOW_API_KEY=…", "the same with text-embedding-v4"))
    elif chat is None and not opened.endpoint.local_model:
        lines.append(("--chat-model qwen3.5-plus", "let a chat model write the answer"))
    return lines


# -- JSON ----------------------------------------------------------------------------------------


def _passages_json(passages: Sequence[Passage]) -> list[dict[str, Any]]:
    return [asdict(item) for item in passages]


def _updated_json(done: Updated) -> dict[str, Any]:
    return {
        "added": done.added,
        "changed": done.changed,
        "unchanged": done.unchanged,
        "removed": done.removed,
        "left_out": [{"source": item.source, "reason": item.reason} for item in done.left_out],
        "seconds": round(done.seconds, 3),
    }


def _cost_json(opened: Session) -> dict[str, Any]:
    return cost_json(opened.usage(), opened.endpoint)


def _found_json(
    opened: Session,
    question: str,
    found: list[Found],
    answers: list[dict[str, Any]] | None,
    beside: list[Passage] | None,
    bill: dict[str, Any],
) -> dict[str, Any]:
    endpoint = opened.endpoint
    return {
        "question": question,
        "index": opened.index.name,
        "endpoint": {
            "base_url": endpoint.base_url,
            "model": endpoint.model,
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
        "close": found[0].is_close(endpoint.model),
        **({"bm25": _passages_json(beside)} if beside is not None else {}),
        **({"answers": answers} if answers is not None else {}),
        "cost": _cost_json(opened) | bill,
    }
