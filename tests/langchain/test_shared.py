"""Limits and budgets that are kept for several processes are fields here, as in the client."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.load import dumps, loads

from nexusflow_integrations import Budget, Grant
from nexusflow_integrations.errors import BudgetExceededError, ConfigurationError
from nexusflow_integrations.langchain import NexusFlowEmbeddings

Make = Callable[..., NexusFlowEmbeddings]
pytestmark = pytest.mark.filterwarnings("ignore:.*in beta.*")


class Limits:
    """Keeps limits and a budget of 1,000 tokens in memory."""

    requests_per_minute = 60_000.0
    tokens_per_minute = None
    processes = 1
    tokens = 1_000

    def __init__(self) -> None:
        self.leases = 0
        self.granted = 0

    def lease(self, count: int, tokens: int, **late: float) -> list[float]:
        self.leases += 1
        return [0.0] * count

    def owe(self, tokens: float, late: float = 0.0) -> None:
        pass

    def throttled(self, ago: float) -> None:
        pass

    def draw(self, least: int, wanted: int, unused: int, kept: int) -> Grant:
        self.granted -= unused
        given = min(max(least, wanted), self.tokens - self.granted)
        given = given if given >= least else 0
        self.granted += given
        return Grant(given, self.tokens - self.granted, False)


def test_a_pacer_is_asked(make: Make) -> None:
    limits = Limits()
    make(pacer=limits).embed_documents(["a"])
    assert limits.leases > 0


def test_a_shared_budget_holds(make: Make) -> None:
    limits = Limits()
    embeddings = make(budget=limits)
    embeddings.embed_documents(["a"])
    with pytest.raises(BudgetExceededError):
        embeddings.embed_documents(["word " * 1_000])


def test_limits_and_a_pacer_at_once_are_refused(make: Make) -> None:
    with pytest.raises(ConfigurationError, match="the limits are the pacer's"):
        make(pacer=Limits(), requests_per_minute=5)


def test_copies_and_pickles_keep_them(make: Make) -> None:
    embeddings = make(pacer=Limits(), budget=Limits())
    for again in (copy.deepcopy(embeddings), embeddings.model_copy(update={"chunk_size": 3})):
        assert again.pacer is embeddings.pacer
        assert again.budget is embeddings.budget
    again = pickle.loads(pickle.dumps(embeddings))
    assert isinstance(again.pacer, Limits)
    assert isinstance(again.budget, Limits)


def test_a_dump_keeps_a_budget_of_ones_own_and_refuses_to_load_a_shared_one(make: Make) -> None:
    def loaded(embeddings: Any) -> Any:
        return loads(
            dumps(embeddings),
            secrets_map={"NEXUSFLOW_API_KEY": "key"},
            allowed_objects=[NexusFlowEmbeddings],
            valid_namespaces=["nexusflow_integrations"],
        )

    assert loaded(make(budget=Budget(tokens=5))).budget == Budget(tokens=5)
    with pytest.raises((NotImplementedError, ConfigurationError, ValueError)):
        loaded(make(budget=Limits()))
