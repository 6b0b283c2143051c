"""The progress bar advances in sync and async calls, and appears only on request."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from nexusflow_integrations import errors
from nexusflow_integrations.langchain import NexusFlowEmbeddings
from nexusflow_integrations.local import LocalServer

Make = Callable[..., NexusFlowEmbeddings]
TEXTS = [f"text number {number}" for number in range(55)]


def test_the_bar_moves_request_by_request(make: Make, bars: Any) -> None:
    make(show_progress_bar=True).embed_documents(TEXTS)
    (bar,) = bars
    assert (bar.total, sum(bar.steps), bar.closed) == (55, 55, True)
    assert len(bar.steps) > 1


async def test_the_bar_moves_in_async_calls_as_well(make: Make, bars: Any) -> None:
    await make(show_progress_bar=True).aembed_documents(TEXTS)
    (bar,) = bars
    assert (bar.total, sum(bar.steps), bar.closed) == (55, 55, True)
    assert len(bar.steps) > 1


def test_the_bar_counts_texts_that_stand_twice(make: Make, bars: Any) -> None:
    make(show_progress_bar=True).embed_documents(["same", "other"] * 10)
    assert sum(bars[0].steps) == 20


def test_a_real_bar_reaches_its_end(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    make(show_progress_bar=True).embed_documents(TEXTS)
    shown = capsys.readouterr().err
    assert "0/55" in shown
    assert "55/55" in shown


def test_the_bar_is_closed_when_the_call_fails(make: Make, bars: Any) -> None:
    with pytest.raises(errors.AuthenticationError):
        make(show_progress_bar=True, api_key="sk-air-wrong").embed_documents(TEXTS)
    assert bars[0].closed


async def test_there_is_no_bar_unless_asked_for_nor_for_queries_nor_for_nothing(
    make: Make, bars: Any
) -> None:
    make().embed_documents(TEXTS)
    embeddings = make(show_progress_bar=True)
    embeddings.embed_query("a")
    await embeddings.aembed_query("a")
    embeddings.embed_documents([])
    assert bars == []


def test_a_missing_tqdm_is_named_before_anything_is_sent(
    make: Make, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match="show_progress_bar=True needs tqdm: pip install tqdm"):
        make(show_progress_bar=True).embed_documents(["a"])
    assert server.stats.requests == 0


def test_an_interrupt_while_the_bar_is_drawn_ends_the_call(
    make: Make, bars: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(step: int) -> None:
        raise KeyboardInterrupt

    embeddings = make(show_progress_bar=True)
    embeddings.embed_documents(["a"])
    monkeypatch.setattr(type(bars[0]), "update", staticmethod(interrupted))
    with pytest.raises(KeyboardInterrupt):
        embeddings.embed_documents([f"interrupted {number}" for number in range(55)])
    assert bars[1].closed
