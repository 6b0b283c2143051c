"""Limits and budgets that processes share are fields, as in the client."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.load import dumps, loads
from limits_in_memory import Limits

from nexusflow_integrations import Budget
from nexusflow_integrations.errors import BudgetExceededError, ConfigurationError
from nexusflow_integrations.langchain import NexusFlowEmbeddings

Make = Callable[..., NexusFlowEmbeddings]
pytestmark = pytest.mark.filterwarnings("ignore:.*in beta.*")


def test_a_pacer_is_used(make: Make) -> None:
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
    with pytest.raises(ConfigurationError, match="pacer has its own limits"):
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
