"""The cache key of a text depends on everything that changes its vector, and on nothing else."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from nexusflow_integrations._core.cache.keys import Keyer

short = st.text(st.characters(codec="utf-8"), max_size=6)
parts = st.tuples(short, short, st.sampled_from([None, 64, 1024]), short)


def key_of(of: tuple[str, str, int | None, str]) -> bytes:
    url, model, dimensions, text = of
    return Keyer(base_url=url, model=model, dimensions=dimensions)(text)


@given(parts, parts)
def test_two_keys_are_equal_only_if_everything_they_depend_on_is(
    one: tuple[str, str, int | None, str], other: tuple[str, str, int | None, str]
) -> None:
    assert (key_of(one) == key_of(other)) == (one == other)


@given(st.text(st.characters(codec="utf-8"), min_size=2), st.data())
def test_moving_a_character_from_one_part_to_the_next_changes_the_key(
    joined: str, data: st.DataObject
) -> None:
    cuts = st.integers(0, len(joined))
    one, other = data.draw(cuts), data.draw(cuts)
    assume(one != other)
    assert key_of((joined[:one], joined[one:], None, "")) != key_of(
        (joined[:other], joined[other:], None, "")
    )
    assert key_of(("", joined[:one], None, joined[one:])) != key_of(
        ("", joined[:other], None, joined[other:])
    )


def test_a_key_is_24_bytes_and_the_same_in_every_run() -> None:
    key = Keyer(base_url="https://a.example/v1", model="m", dimensions=64)("x")
    # A changed value would make every existing cache useless.
    assert key.hex() == KEY_OF_X


KEY_OF_X = "0ce7adadedcc68957a85c0f8603212d6b0760ca1053d9432"


def test_keys_of_one_kind_share_their_first_bytes_and_of_another_kind_do_not() -> None:
    keyer = Keyer(base_url="https://a.example/v1", model="m", dimensions=64)
    assert keyer("x")[:4] == keyer("y")[:4] == keyer.prefix
    assert Keyer(base_url="https://a.example/v1", model="m", dimensions=128).prefix != keyer.prefix


def test_a_keyer_is_equal_by_what_it_depends_on() -> None:
    keyer = Keyer(base_url="u", model="m", dimensions=None)
    assert (keyer.base_url, keyer.model, keyer.dimensions) == ("u", "m", None)
