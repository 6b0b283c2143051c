"""``nexusflow``: its commands and their exit codes."""

from __future__ import annotations

import errno
import inspect
import os
import re
from dataclasses import asdict
from enum import Enum
from typing import Annotated, Any

import typer

from nexusflow_integrations import __version__
from nexusflow_integrations.cli.ask import ask, demo, index, search
from nexusflow_integrations.cli.cache import cache
from nexusflow_integrations.cli.embed import embed
from nexusflow_integrations.cli.exits import USAGE, UsageProblem, explain
from nexusflow_integrations.cli.indexes import indexes
from nexusflow_integrations.cli.interrupts import say_stopped, was_pressed
from nexusflow_integrations.cli.options import JsonOption, StoreOption, print_json
from nexusflow_integrations.cli.plain_help import Command, Group
from nexusflow_integrations.cli.report import report
from nexusflow_integrations.cli.screen import Screen
from nexusflow_integrations.cli.tune import tune
from nexusflow_integrations.cli.words import printable

__all__ = ["app"]


class Commands(Group):
    """Reports every error of its commands with one sentence and a documented exit code."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Read the arguments before the command's name."""
        try:
            return super().make_context(*args, **options)
        except Exception as error:
            _end_if_wrong_usage(error)
            raise

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(say_stopped()) from None
        except Exception as error:
            _end_if_wrong_usage(error)
            # Typer's own exceptions carry an exit code, and Typer handles a closed pipe.
            its_own = hasattr(error, "exit_code") or isinstance(error, typer.Abort)
            closed = isinstance(error, OSError) and error.errno == errno.EPIPE
            if its_own or closed or os.environ.get("NEXUSFLOW_DEBUG"):
                raise
            if was_pressed():  # a library has turned Ctrl-C into an error of its own
                raise typer.Exit(say_stopped()) from None
            sentence, code = explain(error)
            typer.echo(f"nexusflow: {printable(sentence)}", err=True)
            raise typer.Exit(code) from None


def _end_if_wrong_usage(error: Exception) -> None:
    """Print wrong usage like every other failure: the last line is one sentence.

    Raises:
        typer.Exit: ``error`` is about wrong usage.
    """
    # The class of these errors is not public: it depends on Typer's version.
    message = getattr(error, "format_message", None)
    if message is None or type(error).__name__ == "NoArgsIsHelpError":  # prints the help
        return
    ctx = getattr(error, "ctx", None)
    if ctx is not None:
        typer.echo(f"{ctx.get_usage()}\nTry '{ctx.command_path} --help' for help.", err=True)
    said = printable(" ".join(message().split())).rstrip(".")
    said = said.replace(": Value error, ", ": ")
    if "unexpected extra argument" in said:
        said += ": put quotes around a path, a question or another value if it has spaces"
    typer.echo(f"nexusflow: {said[:1].lower()}{said[1:]}", err=True)
    raise typer.Exit(getattr(error, "exit_code", USAGE)) from None


app = typer.Typer(
    name="nexusflow",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Embeddings, search and answers from your own texts: with NexusFlow if"
    " [bold]NEXUSFLOW_API_KEY[/bold] is set, otherwise with a small model on this machine.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, or an input that is missing or"
    " cannot be read, 3 a package is missing, 4 the key is missing or refused, 5 something was"
    " left out, 130 stopped by Ctrl-C. NO_COLOR turns colours off.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nexusflow-integrations {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[  # noqa: ARG001 - the callback prints it
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    return


for command in (demo, index, ask, search, tune):
    app.command()(command)
app.add_typer(indexes, name="indexes")


class LocalModel(str, Enum):
    """The values of the option ``--model`` of `serve`."""

    gated = "minilm-use-gated"
    use = "use"
    minilm = "minilm"
    hash = "hash"


class LocalSizes(str, Enum):
    """The values of the option ``--sizes`` of `serve`."""

    cut = "cut"
    independent = "independent"


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")
    ] = 8765,
    model: Annotated[
        LocalModel,
        typer.Option(
            metavar="NAME",
            help="minilm-use-gated, use, minilm or hash (hashed words, not semantic).",
        ),
    ] = LocalModel.gated,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="NEXUSFLOW_SERVE_KEY",
            show_default=False,
            help="The only key to accept. [dim]Default: any key.[/dim]",
        ),
    ] = None,
    requests_per_minute: Annotated[
        float | None, typer.Option(min=0, help="Maximum number of requests per minute.")
    ] = None,
    tokens_per_minute: Annotated[
        float | None, typer.Option(min=0, help="Maximum number of tokens per minute.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of requests in progress.")
    ] = None,
    growth: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Maximum requests per second, as a multiple of the busiest of the last five"
            " seconds.",
        ),
    ] = None,
    latency_ms: Annotated[
        float, typer.Option(min=0, help="Delay to add to every response, in milliseconds.")
    ] = 0.0,
    body_limit: Annotated[int, typer.Option(min=1, help="Maximum size of a request, in bytes.")] = 1
    << 20,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of the model.")] = 1,
    sizes: Annotated[
        LocalSizes,
        typer.Option(
            help="cut: smaller vectors are the beginning of the largest one; independent: they are"
            " not."
        ),
    ] = LocalSizes.cut,
    log_requests: Annotated[
        bool, typer.Option("--log", help="Print a line for each request on standard error.")
    ] = False,
) -> None:
    """Serve the embeddings API on this machine, with a small model instead of the service."""
    from nexusflow_integrations.local import serve as run

    try:
        run(
            host,
            port,
            model=model.value,
            api_key=api_key,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            concurrency=concurrency,
            growth=growth,
            latency_ms=latency_ms,
            body_limit=body_limit,
            threads=threads,
            sizes=sizes.value,
            log_requests=log_requests,
        )
    except ValueError as error:
        raise UsageProblem(str(error)) from None


@app.command()
def doctor(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Check the setup, and compare stored vectors with the service.

    Checks key, endpoint, proxy, packages and folders, and makes a test request. With a key, it also
    compares the cache and the indexes with the service, which costs a few requests.
    """
    from nexusflow_integrations.cli.doctor import examine, show

    screen = Screen(quiet=as_json)
    with screen.waiting("checking …"):
        findings = examine(store)
    if as_json:
        print_json({"healthy": findings.healthy, "checks": [asdict(item) for item in findings]})
    else:
        show(screen, findings)
    if findings.code:
        raise typer.Exit(findings.code)


app.command()(embed)
app.command()(report)
app.add_typer(cache, name="cache")


def _polish_help(group: typer.Typer) -> None:
    """Join the lines of the commands' help, because Typer keeps the line breaks of docstrings."""
    for item in group.registered_commands:
        item.cls = Command
        item.help = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.getdoc(item.callback) or "")


for group in (app, indexes, cache):
    _polish_help(group)
