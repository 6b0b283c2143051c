"""Every fault gives the right vector for every text or one typed error, with every interface.

No call gets a wrong vector, hangs, or retries too often. The faults are data, in `catalogue.py`.
"""

from __future__ import annotations

import pickle
import re
import threading
import time
import traceback
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, cycle

import numpy as np
import pytest

from .catalogue import DEFAULTS, ROWS, AnyOf, Expectation, Raises, Right, Row
from .server import FaultServer, expected_vector
from .surfaces import ADAPTERS, CORE, SURFACES, Embed, Rows

pytest.importorskip("nexusflow_integrations.client")

LIFETIME = 150.0  # of a server: a fault without end lasts this long
SLACK = 20.0  # for a busy machine; short enough to notice a wait for the timeout after a deadline
LONGEST_MESSAGE = 4000

_numbers = count()


def _cases(config: pytest.Config) -> Iterator[tuple[Row, str]]:
    """All rows on the core (those that wait with one of its interfaces); one of each family on the
    adapters; everything with --all-surfaces."""
    every = config.getoption("--all-surfaces", default=False)
    turns = cycle(CORE)
    for row in ROWS:
        one = next(turns) if row.waits and not every else None
        for surface in CORE:
            if one in (None, surface):
                yield row, surface
        for surface in ADAPTERS:
            if every or row.representative:
                yield row, surface


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "surface" in metafunc.fixturenames:
        cases = list(_cases(metafunc.config))
        ids = [f"{row.id}-{surface}" for row, surface in cases]
        metafunc.parametrize(("row", "surface"), cases, ids=ids)


@pytest.mark.usefixtures("short_delays")
def test_right_vectors_or_one_typed_error(row: Row, surface: str, elsewhere: FaultServer) -> None:
    key = f"sk-air-{next(_numbers)}-0123456789abcdef"  # the pacer and the budget are per key
    options = {k: v for k, v in {**DEFAULTS, **row.options}.items() if v is not None}
    with FaultServer(
        row.script(),
        elsewhere=elsewhere.base_url,
        lifetime=LIFETIME,
        **{"dimensions": 64, **row.server},
    ) as server:
        address = row.address(server) if row.address else server.base_url
        with _bounded_memory(row.memory_mb), SURFACES[surface](address, key, options) as embed:
            for call, expectation in enumerate(row.expect):
                if call and row.idle:
                    _wait_until_all_is_sent(server)
                    time.sleep(row.idle)
                _check_call(row, call, expectation, embed, server, key)
        assert not server.cut_short, "the client read on until the server gave up"
    assert elsewhere.attempts == 0


def _wait_until_all_is_sent(server: FaultServer) -> None:
    until = time.monotonic() + LIFETIME
    while server.in_flight:
        assert time.monotonic() < until
        time.sleep(0.005)


def _check_call(
    row: Row,
    call: int,
    expectation: Expectation,
    embed: Embed,
    server: FaultServer,
    key: str,
) -> None:
    texts = row.texts_of(call)
    before, asked = server.attempts, len(server.requests)
    started = time.monotonic()
    outcome: Rows | BaseException
    try:
        outcome = embed(texts)
    except Exception as error:
        outcome = error
    assert time.monotonic() - started < _longest(row), "longer than the deadline allows"
    choices = expectation.choices if isinstance(expectation, AnyOf) else (expectation,)
    attempts = _attempts(server, before, min(choice.attempts[0] for choice in choices))

    kind = Raises if isinstance(outcome, Exception) else Right
    fitting = [choice for choice in choices if isinstance(choice, kind)]
    if not fitting:
        if isinstance(outcome, Exception):
            raise AssertionError(f"raised after {attempts} attempts") from outcome
        _check_vectors(outcome, texts, server.dimensions)
        raise AssertionError(f"right vectors after {attempts} attempts, where an error was due")
    if isinstance(outcome, Exception):
        _check_error(outcome, texts, key)
        assert any(_is_the_error(outcome, attempts, choice) for choice in fitting) or (
            _explain(outcome, attempts, fitting)
        )
    else:
        _check_vectors(outcome, texts, server.dimensions)
        choice = fitting[0]
        assert isinstance(choice, Right)
        assert choice.attempts[0] <= attempts <= choice.attempts[1], _log(server)
        if choice.gap is not None:
            assert server.gaps()[asked] >= choice.gap


def _attempts(server: FaultServer, before: int, least: int) -> int:
    """How many there were; a call that was cut short may be over before the server sees it."""
    until = time.monotonic() + 10
    while (attempts := server.attempts - before) < least and time.monotonic() < until:
        time.sleep(0.005)
    return attempts


def _longest(row: Row) -> float:
    """Seconds that a call may take, with some for a busy machine; less than the server lives."""
    options = {**DEFAULTS, **row.options}
    limit = options["deadline"] or options["timeout"] * (options["max_retries"] + 1)
    assert limit + SLACK < LIFETIME
    return float(limit + SLACK)


def _check_vectors(rows: Rows, texts: tuple[str, ...], dimensions: int) -> None:
    assert len(rows) == len(texts)
    for i, (row, text) in enumerate(zip(rows, texts, strict=True)):
        assert np.array_equal(row, expected_vector(text, dimensions)), f"row {i} is another's"


def _check_error(error: Exception, texts: tuple[str, ...], key: str) -> None:
    """What holds for every error: typed, short, printable, picklable, without the key."""
    from nexusflow_integrations.errors import NexusFlowError

    if not isinstance(error, NexusFlowError):
        raise AssertionError(f"not of this package: {type(error)}") from error
    text = str(error)
    assert text
    assert len(text) <= LONGEST_MESSAGE
    assert "".join(c for c in text if not c.isprintable() and c != "\n") == ""
    report = "".join(traceback.format_exception(error))
    pickled = pickle.dumps(error)
    for place in (text, repr(error), repr(error.__dict__), report, repr(pickled)):
        assert key not in place
    again = pickle.loads(pickled)
    assert type(again) is type(error)
    assert str(again) == text
    for index, vector in error.finished.items():
        assert np.array_equal(vector, expected_vector(texts[index], len(vector)))
    assert len({len(vector) for vector in error.finished.values()}) <= 1


def _mismatches(error: Exception, attempts: int, choice: Raises) -> Iterator[str]:
    names = (choice.error,) if isinstance(choice.error, str) else choice.error
    if not any(cls.__name__ in names for cls in type(error).__mro__):
        yield f"not a {' or '.join(names)}"
    if not choice.attempts[0] <= attempts <= choice.attempts[1]:
        yield f"{attempts} attempts, not {choice.attempts[0]} to {choice.attempts[1]}"
    if not re.search(choice.match, str(error), re.DOTALL):
        yield f"does not say {choice.match!r}"
    if choice.lacks and re.search(choice.lacks, str(error)):
        yield f"says {choice.lacks!r}"
    for name in ("status", "code"):
        due = getattr(choice, name)
        found = getattr(error, "status_code" if name == "status" else name, None)
        if due is not None and found != due:
            yield f"{name} is {found!r}, not {due!r}"
    if choice.finished is not None and set(error.finished) != choice.finished:  # type: ignore[attr-defined]
        yield f"finished are {sorted(error.finished)}, not {sorted(choice.finished)}"  # type: ignore[attr-defined]
    if choice.refused is not None and set(getattr(error, "refused", ())) != choice.refused:
        yield f"refused are {sorted(getattr(error, 'refused', ()))}, not {sorted(choice.refused)}"
    if choice.retry_after is not None:
        low, high = choice.retry_after
        found = getattr(error, "retry_after", None)
        if found is None or not low <= found <= high:
            yield f"retry_after is {found!r}"


def _is_the_error(error: Exception, attempts: int, choice: Right | Raises) -> bool:
    assert isinstance(choice, Raises)
    return not any(_mismatches(error, attempts, choice))


def _explain(error: Exception, attempts: int, choices: list[Right | Raises]) -> bool:
    reasons = [
        "; ".join(_mismatches(error, attempts, choice))
        for choice in choices
        if isinstance(choice, Raises)
    ]
    raise AssertionError(f"{error!r}: {' / '.join(reasons)}") from error


def _log(server: FaultServer) -> str:
    lines = [f"{r.number} on connection {r.connection}: {r.texts}" for r in server.requests]
    return f"{server.attempts} attempts\n" + "\n".join(lines)[:2000]


@contextmanager
def _bounded_memory(megabytes: float | None) -> Iterator[None]:
    """What this process allocates for the answer stays below `megabytes`."""
    if megabytes is None:
        yield
        return
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < megabytes * 1024 * 1024


def test_the_table_leaves_no_threads_of_the_server_behind() -> None:
    with FaultServer(lambda wire: wire.hold()):
        pass
    assert not [t for t in threading.enumerate() if t.name.startswith("fault-wire")]
