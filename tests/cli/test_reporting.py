"""A command says how far it is, without a terminal not more often than needed."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest
from rich.console import Console

from nexusflow_integrations.cli import screen
from nexusflow_integrations.cli.screen import Screen
from nexusflow_integrations.local import LocalServer

from .conftest import Command


class Printed(io.StringIO):
    """A file that knows which lines it got."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.got = Event()

    def write(self, text: str) -> int:
        self.lines += text.splitlines()
        self.got.set()
        return len(text)


def test_a_line_is_printed_when_it_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "_SILENCE", 0.001)
    monkeypatch.setattr("sys.stderr", printed := Printed())
    looked = {"one": Event(), "two": Event()}
    now = "one"

    def line() -> str:
        # The second look at a line shows that the first one has printed it.
        if printed.lines[-1:] == [now]:
            looked[now].set()
        return now

    with Screen().reporting(line):
        assert looked["one"].wait(60)
        now = "two"
        assert looked["two"].wait(60)
    assert printed.lines == ["one", "two"]


def test_nothing_is_printed_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", printed := Printed())
    with Screen().waiting("checking …"):
        pass
    assert printed.lines == []


def test_waiting_is_said_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "_SILENCE", 0.001)
    monkeypatch.setattr("sys.stderr", printed := Printed())
    with Screen().waiting("checking …"):
        assert printed.got.wait(60)
    assert printed.lines == ["checking …"]


def test_a_terminal_shows_a_line_that_changes() -> None:
    shown, file, now = Screen(), io.StringIO(), "one"
    shown.err = Console(file=file, force_terminal=True)
    with shown.waiting(lambda: now):
        _until_in("one", file)
        now = "two"
        _until_in("two", file)


def _until_in(line: str, file: io.StringIO) -> None:
    end = time.monotonic() + 60
    while line not in file.getvalue():
        assert time.monotonic() < end, "it was never shown"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("command", "begins"), [("index", "indexing: 3/3  "), ("embed", "embedding: 2/2  ")]
)
def test_a_line_says_how_many_texts_are_done(
    nexusflow: Command,
    service: LocalServer,
    zoo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    begins: str,
) -> None:
    said: list[str] = []

    @contextmanager
    def reporting(_: Screen, line: Callable[[], str]) -> Iterator[None]:
        said.append(line())
        yield
        said.append(line())

    monkeypatch.setattr(Screen, "reporting", reporting)
    texts = tmp_path / "two.txt"
    texts.write_text("one\ntwo\n")
    nexusflow(command, str(zoo if command == "index" else texts))
    assert said[0].endswith("ing: waiting for the first vectors …")
    assert said[1].startswith(begins)
    assert "tokens" in said[1]
