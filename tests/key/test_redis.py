"""Error messages never show the password of a Redis server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nexusflow_integrations import NexusFlow, errors
from nexusflow_integrations._core.redis.address import PASSWORD_ENV
from nexusflow_integrations._core.unavailable import StoreUnavailable
from nexusflow_integrations.redis import RedisLimits

from .entries import KEY, PASSWORD
from .traces import leaks


@pytest.mark.parametrize("where", ["url", "environment"])
@pytest.mark.parametrize("problem", ["refused", "gone", "an option"])
def test_a_password_is_in_no_error(
    redis_process: Callable[..., Any],
    where: str,
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = redis_process("--requirepass", "another").port if problem == "refused" else 1
    if where == "environment":
        monkeypatch.setenv(PASSWORD_ENV, PASSWORD)
    login = f"user:{PASSWORD}@" if where == "url" else ""
    option = "?ssl_nonsense=1" if problem == "an option" else ""
    url = f"redis://{login}127.0.0.1:{port}/0{option}"

    with pytest.raises((StoreUnavailable, errors.CacheError)) as refused:
        RedisLimits(url, requests_per_minute=60).lease(1, 1)
    assert leaks(refused.value, PASSWORD) == []

    client = NexusFlow(KEY, base_url="http://127.0.0.1:1/v1", cache=url, max_retries=0)
    with pytest.raises(errors.NexusFlowError) as caught:
        client.embed("a text")
    assert leaks(caught.value, PASSWORD, KEY) == []
    with pytest.raises(errors.NexusFlowError) as caught:
        client.embed(["a text"])
    assert leaks(caught.value, PASSWORD, KEY) == []
