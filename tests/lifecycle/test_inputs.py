"""Each kind of input that is accepted gives the documented result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nexusflow_integrations.errors import ConfigurationError, InvalidInputError, NexusFlowError

from .scene import SIZE, assert_right, client_of, texts


@pytest.mark.parametrize("bad", ["", "  ", "\ufeff", "\x00\x00", "\ud800", None, 3, b"x", ["x"]])
def test_f136_a_bad_text_is_named_and_nothing_is_sent(server: Any, bad: Any) -> None:
    with pytest.raises(InvalidInputError, match="text 11") as caught:
        client_of(server).embed([*texts(11), bad, "c"])
    assert caught.value.index == 11
    assert server.attempts == 0


async def test_the_same_for_async_calls(server: Any) -> None:
    with pytest.raises(InvalidInputError, match="text 1"):
        await client_of(server).aembed(["a", "\udfff"])
    assert server.attempts == 0


@pytest.mark.parametrize(
    "odd", ["\ufeffwith a mark", "nul\x00inside", 'quotes " and \\', "\u2028", "é\u0301", "🧪" * 9]
)
def test_odd_but_visible_texts_arrive_unchanged(server: Any, odd: str) -> None:
    if not odd.strip():
        pytest.skip("U+2028 alone is blank")
    assert_right(client_of(server).embed([odd, "b"]), [odd, "b"])
    assert list(server.texts) == [odd, "b"]


def test_a_text_of_a_million_characters_is_sent_alone_and_unchanged(server: Any) -> None:
    long = "ab" * 500_000
    assert_right(client_of(server, on_too_long="send").embed(["a", long, "b"]), ["a", long, "b"])
    assert sorted(len(request.texts) for request in server.requests) == [1, 1, 1]


def test_a_hundred_thousand_texts_with_duplicates_are_paid_for_once(server: Any) -> None:
    many = [f"text {n % 500}" for n in range(100_000)]
    heard: list[int] = []
    client = client_of(server)
    rows = client.embed(many, progress=heard.append)
    assert rows.shape == (100_000, SIZE)
    assert_right(rows[:1000], many[:1000])
    assert np.array_equal(rows[:500], rows[-500:])
    assert sum(server.texts.values()) == 500
    assert sum(heard) == 100_000
    assert client.usage.repeated == 99_500


def test_any_iterable_of_texts_works(server: Any) -> None:
    client = client_of(server)
    for source in (
        (t for t in ("a", "b")),
        ("a", "b"),
        np.array(["a", "b"]),
        {0: "a", 1: "b"}.values(),
    ):
        assert_right(client.embed(source), ["a", "b"])
    assert_right([client.embed(np.str_("a"))], ["a"])


def test_one_text_is_one_vector_and_a_list_of_one_a_matrix(server: Any) -> None:
    client = client_of(server)
    assert client.embed("a").shape == (SIZE,)
    assert client.embed(["a"]).shape == (1, SIZE)


@pytest.mark.parametrize("char", ["漢", "🧪"])
def test_ten_long_texts_of_cjk_or_emoji_stay_under_a_mebibyte(server: Any, char: str) -> None:
    mine = [f"{n}" + char * 30_000 for n in range(10)]
    assert_right(client_of(server, on_too_long="send").embed(mine), mine)
    assert max(len(request.body) for request in server.requests) < 1 << 20


def test_a_stream_yields_bad_texts_as_errors_and_goes_on(server: Any) -> None:
    mine = ["a", "", "b", "\ud800", "c"]
    results = list(client_of(server).embed_stream(mine))
    assert [r.index for r in results] == [0, 1, 2, 3, 4]
    assert [r.error is None for r in results] == [True, False, True, False, True]
    assert_right([r.vector for r in results if r.vector is not None], ["a", "b", "c"])


def test_the_finished_vectors_of_a_failed_stream_have_their_index_in_the_stream(
    server: Any,
) -> None:
    mine = texts(200)
    mine[3] = mine[47] = ""
    body = {"error": {"code": "Arrearage", "message": "pay"}}
    server.script = type(server.script)(
        lambda wire: wire.respond(400, body), lambda wire: "text 75" in wire.texts
    )
    stream = client_of(server, max_concurrency=1).embed_stream(mine)
    yielded = [next(stream).index for _ in range(40)]
    with pytest.raises(NexusFlowError) as caught:
        next(stream)
    finished = caught.value.finished
    assert yielded == list(range(40))
    assert set(finished) >= set(range(40, 70)) - {47}
    for index, row in finished.items():
        assert_right([row], [mine[index]])


def test_an_unknown_role_is_refused_before_anything_is_sent(server: Any) -> None:
    with pytest.raises(ConfigurationError, match="role must be 'document' or 'query', not 'doc'"):
        client_of(server).embed("a", role="doc")
    assert server.attempts == 0
