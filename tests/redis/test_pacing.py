"""The Lua script and the Python code give the same results on a simulated clock."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nexusflow_integrations._core.cache.in_file import VectorStore
from nexusflow_integrations._core.pace.in_file import SharedPacer
from nexusflow_integrations._core.pace.in_redis import AccountLimits
from nexusflow_integrations._core.redis.address import RedisAddress
from nexusflow_integrations._core.redis.server import RedisServer

Pair = Callable[..., tuple[AccountLimits, SharedPacer]]


@pytest.fixture
def pair(redis_server: Any, tmp_path: Path, clock: Any) -> Any:
    """Make limits on the server and in a file, with the same settings."""
    server = RedisServer(RedisAddress(redis_server.url))
    store = VectorStore(tmp_path / "pace.db", clock=clock)

    def make(
        account: bytes, requests: float | None, tokens: float | None
    ) -> tuple[AccountLimits, SharedPacer]:
        told = {"requests_per_minute": requests, "tokens_per_minute": tokens}
        return AccountLimits(server, account, clock=clock, **told), SharedPacer(
            store, account, **told
        )

    yield make
    server.close()
    store.close()


accounts = count()
limits = st.tuples(
    st.sampled_from([None, 5e-324, 1e-9, 1, 30, 59.5, 60, 61, 75, 120, 600, 6_000, 1e6]),
    st.sampled_from([None, 1e-9, 60, 6_000, 33_333.3, 600_000]),
)
passing = st.one_of(
    st.sampled_from([0.0, 0.09, 0.1, 0.28, 1.0, 4_000.0, -1.0, -3_600.0, 90_000.0]), st.floats(0, 3)
)
steps = st.one_of(
    st.tuples(
        st.just("lease"),
        st.integers(1, 20),
        st.integers(1, 20_000),
        st.one_of(st.just(0.0), st.floats(-5_000, 5_000)),
        st.one_of(st.just(0.0), st.floats(0, 0.3)),
    ),
    st.tuples(st.just("adjust"), st.floats(-5_000, 5_000), st.sampled_from([0.0, 0.05])),
    st.tuples(st.just("throttled"), st.floats(0, 2)),
)


@settings(
    deadline=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    told=st.lists(limits, min_size=1, max_size=3),
    plan=st.lists(st.tuples(st.integers(0, 2), passing, steps), max_size=25),
)
def test_the_script_computes_the_same_as_the_python_code(
    pair: Pair,
    clock: Any,
    told: list[tuple[float | None, float | None]],
    plan: list[tuple[int, float, tuple[Any, ...]]],
) -> None:
    account = f"account {next(accounts)}".encode()
    pairs = [pair(account, *one) for one in told]  # several with different limits
    for who, seconds, (name, *args) in plan:
        clock.now += seconds
        on_server, in_file = pairs[who % len(pairs)]
        if name == "lease":
            number, tokens, owed, late = args
            answers = [
                one.lease(number, tokens, owed_tokens=owed, late=late)
                for one in (on_server, in_file)
            ]
            assert answers[0] == pytest.approx(answers[1], rel=1e-9, abs=1e-6)
        else:
            for one in (on_server, in_file):
                getattr(one, name)(*args)
