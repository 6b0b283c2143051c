"""Limits and budgets that processes share are fields, as in the client."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
from limits_in_memory import Limits

from nexusflow_integrations.errors import BudgetExceededError, ConfigurationError
from nexusflow_integrations.llama_index import NexusFlowEmbedding


def test_a_pacer_is_used_and_a_shared_budget_holds(embedding: NexusFlowEmbedding) -> None:
    embedding.pacer = limits = Limits()
    embedding.budget = Limits()
    embedding.get_text_embedding_batch(["a"])
    assert limits.leases > 0
    with pytest.raises(BudgetExceededError):
        embedding.get_text_embedding_batch(["word " * 1_000])


def test_limits_and_a_pacer_at_once_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="pacer has its own limits"):
        NexusFlowEmbedding(pacer=Limits(), requests_per_minute=5)


def test_copies_and_pickles_keep_them_and_a_dict_does_not(embedding: NexusFlowEmbedding) -> None:
    embedding.pacer, embedding.budget = Limits(), Limits()
    assert copy.deepcopy(embedding).pacer is embedding.pacer
    again = pickle.loads(pickle.dumps(embedding))
    assert isinstance(again.pacer, Limits)
    assert isinstance(again.budget, Limits)
    assert embedding.to_dict().keys().isdisjoint({"pacer", "budget"})


class Locked(Limits):
    """Cannot be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def acquire(self, **_: int) -> None:
        pass

    async def async_acquire(self, **_: int) -> None:
        pass


@pytest.mark.parametrize("name", ["pacer", "budget"])
def test_limits_that_cannot_be_pickled_are_not_forgotten(
    embedding: NexusFlowEmbedding, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", embedding.api_key.get_secret_value())
    setattr(embedding, name, Locked())
    again = pickle.loads(pickle.dumps(embedding))
    with pytest.raises(ConfigurationError, match=f"was pickled without its {name}"):
        again.get_text_embedding("a")
    setattr(again, name, Locked())
    assert len(again.get_text_embedding("a")) == 64


def test_a_worker_names_what_was_not_pickled(
    embedding: NexusFlowEmbedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", embedding.api_key.get_secret_value())
    embedding.rate_limiter = Locked()
    embedding.on_usage = lambda usage: None
    pickled = pickle.dumps(embedding)
    with pytest.warns(UserWarning, match="without its on_usage and rate_limiter"):
        again = pickle.loads(pickled)
    assert len(again.get_text_embedding("a")) == 64
