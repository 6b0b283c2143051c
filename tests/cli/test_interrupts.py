"""Ctrl-C stops the command wherever it arrives."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from nexusflow_integrations import cli
from nexusflow_integrations.cli import interrupts
from nexusflow_integrations.cli.app import app
from nexusflow_integrations.cli.rag import corpus


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(interrupts, "_pressed_at", None)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupts.install()
    yield
    signal.signal(signal.SIGINT, before)


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_an_import_goes_on_until_the_interrupt_cannot_leave_a_lock_held() -> None:
    done: list[int] = []
    source = "signal.raise_signal(signal.SIGINT); done.append(1)"
    code = compile(source, "<frozen importlib._bootstrap>", "exec")
    exec(code, {"signal": signal, "done": done})
    assert done == [1]
    with pytest.raises(KeyboardInterrupt):
        time.sleep(30)


def test_an_import_that_does_not_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "_PATIENCE", 0.2)
    code = compile("press(); sleep(30)", "<frozen importlib._bootstrap>", "exec")
    with pytest.raises(KeyboardInterrupt):
        exec(code, {"press": press, "sleep": time.sleep})


def test_another_hook_for_ignored_errors_is_still_called(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupts.install()

    class Failing:
        def __del__(self) -> None:
            raise ValueError

    Failing()
    assert [ignored.exc_type for ignored in told] == [ValueError]


def test_an_interrupt_that_python_ignores_arrives_again() -> None:
    class Interrupted:
        def __del__(self) -> None:
            press()

    Interrupted()
    with pytest.raises(KeyboardInterrupt):
        time.sleep(30)


def test_an_error_that_a_library_makes_of_the_interrupt_is_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(*_: Any) -> None:
        try:
            press()
        except KeyboardInterrupt:
            raise RuntimeError("cannot build the schema") from None

    monkeypatch.setattr(corpus, "load", load)
    result = CliRunner().invoke(app, ["index", "stdlib"])
    assert (result.exit_code, result.stderr) == (130, "nexusflow: stopped\n")


def test_an_interrupt_before_the_command_begins_prints_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(typer.Typer, "__call__", lambda *_: press())
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "nexusflow: stopped\n"


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupts.install()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
