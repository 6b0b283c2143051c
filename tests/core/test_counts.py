"""A number is written with its noun."""

from __future__ import annotations

import pytest

from nexusflow_integrations._core.counts import count


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0 texts"), (1, "1 text"), (2, "2 texts"), (1234, "1,234 texts")]
)
def test_one_is_singular_and_thousands_have_a_comma(number: int, said: str) -> None:
    assert count(number, "text") == said
