"""``nexusflow tune``: measure which settings find the answers, and choose one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nexusflow_integrations._core.counts import count
from nexusflow_integrations._core.settings import resolve_base_url
from nexusflow_integrations._core.usage import Price, known
from nexusflow_integrations.cli.exits import PARTLY, UsageProblem
from nexusflow_integrations.cli.options import (
    BudgetOption,
    CacheOption,
    ChatPriceOption,
    EstimateOption,
    JsonOption,
    LocalOption,
    YesOption,
    can_ask,
    confirm,
    print_json,
)
from nexusflow_integrations.cli.options import budget as read_budget
from nexusflow_integrations.cli.options import chat_price as read_chat_price
from nexusflow_integrations.cli.outputs import check_ending, check_output, check_page
from nexusflow_integrations.cli.rag import corpus as corpora
from nexusflow_integrations.cli.rag.endpoint import Endpoint, has_key, open_endpoint
from nexusflow_integrations.cli.rag.pipeline import CHAT_VARIABLE, chat_of
from nexusflow_integrations.cli.rag.questions import QUESTIONS
from nexusflow_integrations.cli.rows import check_input
from nexusflow_integrations.cli.screen import INDENT, Screen, money
from nexusflow_integrations.cli.words import printable
from nexusflow_integrations.client import NexusFlow

if TYPE_CHECKING:
    from nexusflow_integrations.tune import Plan, PlannedChat, Question, TuneResult

__all__ = ["tune"]

_ROWS = 12
_WIDE = 130
_ONE_LINE = 180


def tune(
    path: Annotated[
        str,
        typer.Argument(metavar="PATH", help="A folder or file of texts; or stdlib, or topics."),
    ],
    questions: Annotated[
        Path | None,
        typer.Option(
            "--questions",
            "-q",
            dir_okay=False,
            help='JSONL: {"question": …, "source": "a.md:12"} or {"question": …, "quote": …}.'
            " [dim]Default: questions made from the texts.[/dim]",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", dir_okay=False, help="The settings file to write.")
    ] = Path("tuned.json"),
    page: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Also write an HTML page.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Also write an SVG plot.")
    ] = None,
    chat_model: Annotated[
        str | None,
        typer.Option(
            help="Chat model, such as qwen3.5-plus, that writes the questions if --questions is"
            f" not given. [dim]Default: the variable {CHAT_VARIABLE}.[/dim]"
        ),
    ] = None,
    chat_questions: Annotated[
        int, typer.Option(min=1, help="Maximum number of questions that the chat model writes.")
    ] = 100,
    chat_price: ChatPriceOption = None,
    budget: BudgetOption = None,
    estimate: EstimateOption = False,
    yes: YesOption = False,
    local: LocalOption = False,
    cache: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure which vector size, passage length, instruction and kind of search suit your texts.

    The command shows the plan and its price before it sends anything. It writes the choice to a
    file for `index --settings`.
    """
    files = [file for file in (output, page, plot) if file is not None]
    for place, file in enumerate(files):
        check_output(file, questions, *files[:place])
    if output.is_file() and output.suffix.lower() != ".json":
        raise UsageProblem(f"{str(output)!r} exists and is not a JSON file: choose another name")
    check_ending(output, ".json")
    if page is not None:
        check_ending(page, ".html", ".htm")
        check_page(page)
    if plot is not None:
        check_ending(plot, ".svg")
    if questions is not None:
        check_input(questions, "file")
    if questions is not None and chat_model is not None:
        raise UsageProblem(
            "--questions and --chat-model cannot be used together: one names a file of questions,"
            " the other has them written"
        )
    if chat_model is not None and (local or not has_key()):
        raise UsageProblem("the local server has no chat model: set NEXUSFLOW_API_KEY to use one")
    most = None if budget is None else read_budget(budget, Price())
    price = None if chat_price is None else read_chat_price(chat_price)
    screen = Screen(quiet=as_json)
    corpora.check_clear(path)
    with screen.waiting(f"reading {printable(path)} …"):
        texts, skipped = corpora.whole(path)
        from nexusflow_integrations.tune import ChatModel, Tuning
        from nexusflow_integrations.tune.page import write_page, write_plot

    with open_endpoint(local=local or None) as endpoint:
        with screen.waiting("planning …"):
            client = endpoint.client(cache=cache or True)
            asked, chat = _questions(questions, path, texts), chat_of(chat_model, endpoint)
            model = None
            if chat is not None and (asked is None or chat_model is not None):
                asked = None
                model = ChatModel(
                    chat.model,
                    chat.api_key,
                    chat.base_url,
                    price,
                    chat_questions,
                    output.with_suffix(".questions.jsonl"),
                )
            tuning = Tuning(texts, asked, client=client, chat=model, budget=most)
            plan = tuning.plan()
            cost = plan.cost
            if endpoint.local_model is not None:
                # The cached vectors of the local model do not save anything at the service.
                service = NexusFlow("none", base_url=resolve_base_url(), cache=cache or True)
                cost = tuning.plan(service).cost
        _show_plan(screen, plan, endpoint, cost)
        if estimate:
            if as_json:
                print_json(_plan_json(plan, cost) | {"left_out": _left_out_json(skipped)})
            _show_left_out(screen, skipped)
            if skipped:
                raise typer.Exit(PARTLY)
            return
        if endpoint.local_model is None and not yes and most is None:
            if as_json or not can_ask():
                raise UsageProblem(
                    "this costs what --estimate shows: confirm with --yes or --budget"
                )
            confirm("Continue?", default=True)

        def progress(stage: str) -> None:
            screen.err.print(Text(f"measuring: {stage} …", style="dim"))

        with screen.waiting(lambda: tuning._doing):
            result = tuning.run(progress)
    settings = replace(result.settings, local_model=endpoint.local_model)
    written: dict[str, Path] = {}
    problem = None
    try:
        settings.save(output)
        written["settings"] = output
        if page is not None:
            write_page(result, page, local_model=endpoint.local_model)
            written["page"] = page
        if plot is not None:
            write_plot(result, plot)
            written["plot"] = plot
    except OSError as error:  # the result was paid for, so it is shown first
        problem = error
    if as_json:
        path_written = str(output) if "settings" in written else None
        found = {"plan": _plan_json(plan, cost), **result.as_json(), "path": path_written}
        found["choice"] = asdict(settings)
        found["left_out"] = _left_out_json(skipped)
        paid = endpoint.local_model is None
        print_json(found | {"paid": paid} | ({} if paid else {"list_price": 0.0}))
    else:
        _show(screen, result, endpoint, written)
        _show_left_out(screen, skipped)
    if problem is not None:
        raise problem
    if skipped or result.left_out or result.skipped:
        raise typer.Exit(PARTLY)


def _questions(
    path: Path | None, corpus: str, texts: list[tuple[str, str]]
) -> list[Question] | None:
    from nexusflow_integrations.tune import Answer, Question, read_questions

    names = sorted({name for name, _ in texts})
    if path is not None:
        return read_questions(path, names)
    if corpus != "stdlib":
        return None
    asked = [
        Question(item.text, tuple(Answer(name) for name in names if item.accepts(name)))
        for item in QUESTIONS
    ]
    return [question for question in asked if question.answers]


def _left_out_json(skipped: Sequence[corpora.Skipped]) -> list[dict[str, str]]:
    return [{"source": item.source, "reason": item.reason} for item in skipped]


def _show_left_out(screen: Screen, skipped: Sequence[corpora.Skipped]) -> None:
    for item in skipped:
        screen.err.print(Text(f"left out: {printable(str(item))}", style="yellow"))


def _plan_json(plan: Plan, cost: float) -> dict[str, Any]:
    return {
        "questions": plan.questions,
        "made": plan.made,
        "tellable": round(plan.tellable, 4),
        "documents": plan.documents,
        "stages": [{"name": stage.name, "tokens": stage.tokens} for stage in plan.stages],
        "tokens": plan.tokens,
        "token_error": plan.token_error,
        "list_price": cost,
        "currency": plan.price.currency,
        "chat": None if plan.chat is None else _chat_json(plan.chat),
    }


def _chat_json(chat: PlannedChat) -> dict[str, Any]:
    return {
        "model": chat.model,
        "calls": chat.calls,
        "sent_tokens": chat.sent,
        "most_written_tokens": chat.most_written,
        "most_price": known(chat.cost),
    }


def _show_plan(screen: Screen, plan: Plan, endpoint: Endpoint, cost: float) -> None:
    made = " (made from the texts)" if plan.made else ""
    if plan.chat is not None:
        made = f" at most (written by {plan.chat.model})"
    screen.out.print(
        f"{count(plan.questions, 'question')}{made} about {count(plan.documents, 'text')} can show"
        f" differences in nDCG@10 above about {plan.tellable:.2f}. This is an estimate; the result"
        " gives the smallest difference that the measured scores can show."
    )
    screen.head("Plan")
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(justify="right")
    for stage in plan.stages:
        table.add_row(stage.name, f"{stage.tokens:,} tokens")
    error = f" ±{plan.token_error:.0%}" if plan.token_error else ""
    table.add_row(Text("at most", style="bold"), f"{plan.tokens:,}{error} tokens")
    screen.out.print(Padding(table, INDENT))
    paid = f"The embeddings cost {money(cost, plan.price)} at the list price"
    if endpoint.local_model is not None:
        paid = (
            "The local model is free. With the service, the embeddings would cost"
            f" {money(cost, plan.price)} at the list price"
        )
    if (chat := plan.chat) is not None:
        most = "price not known" if isnan(chat.cost) else f"at most {money(chat.cost, plan.price)}"
        calls = f"{chat.model}: {count(chat.calls, 'call')}, about {chat.sent:,} tokens sent"
        said = f"{calls} and at most {chat.most_written:,} written, {most}."
        screen.out.print(Padding(Text(said), INDENT))
    note = (
        f"{paid}. Sizes, keywords and formats need no further tokens if the"
        " service's smaller vectors are the beginning of its largest ones."
    )
    screen.out.print(Padding(Text(note, style="dim"), INDENT))


def _show(
    screen: Screen, result: TuneResult, endpoint: Endpoint, written: Mapping[str, Path]
) -> None:
    """Show the result. ``written`` has the files that were written, by what they contain."""
    from nexusflow_integrations.tune.page import COLUMNS, is_other_length, rows

    screen.head("Measured", "difference from the best in points, with its 95 % interval")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("setting", header_style="dim", overflow="fold")
    # A narrow terminal has room for three columns. --page and --json show all.
    columns = [*COLUMNS]
    wide = screen.out.width >= _WIDE
    shown = (
        range(len(columns)) if wide else [columns.index(n) for n in ("nDCG@10", "hit@1", "bytes")]
    )
    for place in shown:
        table.add_column(columns[place], header_style="dim", justify="right", overflow="fold")
    found = rows(result)
    top = {id(item) for item, _ in found[:_ROWS]} | {id(result.chosen)}
    divided = False
    for item, (name, *cells) in found:
        if id(item) in top or item.setting.method == "keywords":
            if is_other_length(result, item) and not divided:
                divided = True
                table.add_row(Text("other lengths:", style="dim"))
            row = [cells[place] for place in shown]
            if screen.out.width < _ONE_LINE:  # else Rich would break an interval in the middle
                row = [cell.replace(" [", "\n[") for cell in row]
            table.add_row(name, *row, style="bold" if item.setting == result.choice else "")
    screen.out.print(Padding(table, INDENT))
    if len(found) > _ROWS:
        all_in = "The page shows" if "page" in written else "--page and --json show"
        note = f"These are the best of {len(found)} settings. {all_in} all."
        screen.out.print(Padding(Text(note, style="dim"), INDENT))
    screen.head("Choice")
    screen.out.print(Padding(Text(result.sentence()), INDENT))
    for note in result.notes():
        screen.out.print(Padding(Text(note, style="dim"), INDENT))
    usage = result.usage
    paid = "free" if endpoint.local_model is not None else money(usage.cost, usage.price)
    screen.out.print(
        Padding(
            Text(
                f"{usage.tokens:,} tokens billed ({result.predicted_tokens:,} predicted), {paid}.",
                style="dim",
            ),
            INDENT,
        )
    )
    if (chat := result.chat) is not None:
        counted = f"{chat.sent:,} tokens sent and {chat.written:,} written"
        price = "price not known" if isnan(chat.cost) else money(chat.cost, usage.price)
        said = f"{counted}, {price}" if chat.known else "tokens not known"
        line = f"{chat.model}: {count(chat.calls, 'call')}, {said}."
        screen.out.print(Padding(Text(line, style="dim"), INDENT))
    for what, file in written.items():
        said = "Written" if what == "settings" else f"{what.capitalize()} written"
        screen.out.print(Padding(Text(f"{said} to {printable(str(file))}."), INDENT))
