"""Rows become lists on the event loop only for a call that can still return them."""

from __future__ import annotations

import pytest
from faults.behaviours import MODERATION_ERROR
from faults.server import FaultServer, Wire, always

from nexusflow_integrations import NexusFlowError
from nexusflow_integrations._core.call.results import RowLists

from .scene import client_of, until


@pytest.mark.parametrize("status", [400, 401])
def test_no_lists_are_made_for_a_call_that_has_failed(
    server: FaultServer, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[RowLists] = []

    class Recorded(RowLists):
        def __init__(self, count: int) -> None:
            super().__init__(count)
            used.append(self)

    def refuse_one(wire: Wire) -> None:
        if "text 150" in wire.texts:
            until(lambda: used[0]._waiting)
            wire.respond(status, MODERATION_ERROR)
        else:
            wire.right()

    monkeypatch.setattr("nexusflow_integrations._core.call.engine.RowLists", Recorded)
    monkeypatch.setattr("nexusflow_integrations._core.call.results.PAUSE", 3600.0)
    server.script = always(refuse_one)
    client = client_of(server)
    with pytest.raises(NexusFlowError):
        client._embed([f"text {n}" for n in range(200)], lists=True)
    assert len(used) == 1
    assert not used[0]._waiting
