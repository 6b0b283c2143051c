"""Requests are encoded and responses validated: order by index, both formats, any damage."""

from __future__ import annotations

import base64
import gzip
import json
import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nexusflow_integrations._core.request import wire
from nexusflow_integrations._core.request.batching import item_of
from nexusflow_integrations._core.request.wire import (
    MAX_RESPONSE_BYTES,
    BrokenResponse,
    WrongDimensions,
    decode_response,
    decompress,
    encode_request,
)

WORTH_CUTTING = wire._WORTH_CUTTING
FINITE = st.floats(-(2.0**100), 2.0**100, width=32)
MATRICES = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 10), st.integers(1, 16)), elements=FINITE
).filter(lambda m: bool(m.any(axis=1).all()))


@pytest.fixture(autouse=True, scope="module")
def short_vectors_are_cut() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "_WORTH_CUTTING", 0)
        yield


def b64(vector: Any) -> str:
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()


def floats(vector: Any) -> list[float]:
    return [float(x) for x in vector]


def body_of(embeddings: list[Any], indices: list[Any] | None = None, **more: Any) -> bytes:
    places = range(len(embeddings)) if indices is None else indices
    data = [{"embedding": e, "index": i} for e, i in zip(embeddings, places, strict=True)]
    return json.dumps({"data": data, **more}).encode()


def parsed_in_full(body: bytes) -> bytes:
    """Write the same JSON in a way that has no fast path."""
    return body.replace(b'"embedding":', b'"embedding" :')


def decode(body: bytes, count: int, dimensions: int | None = None) -> Any:
    return decode_response(body, count=count, dimensions=dimensions)


# ---- the request


def test_the_request_names_model_format_and_texts_and_the_size_only_if_asked_for() -> None:
    batch = [item_of(0, 'say "hi"\n'), item_of(1, "漢")]
    body = json.loads(encode_request(batch, model="m", encoding_format="float", dimensions=None))
    assert body == {"model": "m", "encoding_format": "float", "input": ['say "hi"\n', "漢"]}
    body = json.loads(encode_request(batch, model="m", encoding_format="base64", dimensions=64))
    assert body["dimensions"] == 64


def test_a_model_name_cannot_break_out_of_its_string() -> None:
    batch = [item_of(0, "x")]
    name = 'm","input":["other"],"x":"'
    body = json.loads(encode_request(batch, model=name, encoding_format="float", dimensions=None))
    assert body["model"] == name
    assert body["input"] == ["x"]


# ---- the numbers


@given(MATRICES)
def test_base64_and_floats_and_a_mixture_give_the_very_same_float32_numbers(
    matrix: np.ndarray,
) -> None:
    body = body_of([b64(row) for row in matrix])
    as_base64 = decode(body, len(matrix)).vectors
    as_slow_base64 = decode(parsed_in_full(body), len(matrix)).vectors
    as_floats = decode(body_of([floats(row) for row in matrix]), len(matrix)).vectors
    mixed = [b64(row) if i % 2 else floats(row) for i, row in enumerate(matrix)]
    as_mixture = decode(body_of(mixed), len(matrix)).vectors
    for got in (as_base64, as_slow_base64, as_floats, as_mixture):
        assert got.dtype == np.float32
        assert np.array_equal(got, matrix)


@given(MATRICES, st.randoms(use_true_random=False))
def test_rows_are_placed_by_index_in_whatever_order_they_come(
    matrix: np.ndarray, chance: random.Random
) -> None:
    order = list(range(len(matrix)))
    chance.shuffle(order)
    body = body_of([b64(matrix[i]) for i in order], order)
    assert np.array_equal(decode(body, len(matrix)).vectors, matrix)
    assert np.array_equal(decode(parsed_in_full(body), len(matrix)).vectors, matrix)


def test_without_any_index_rows_are_placed_by_position() -> None:
    data = [{"embedding": [1.0, 2.0]}, {"embedding": [3.0, 4.0]}]
    got = decode(json.dumps({"data": data}).encode(), 2).vectors
    assert got.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_whole_numbers_are_numbers() -> None:
    assert decode(body_of([[1, 0, -2]]), 1).vectors.tolist() == [[1.0, 0.0, -2.0]]


@pytest.mark.parametrize("scale", [1e-30, 1e-42, 1e20, 3e38])
def test_very_small_and_very_large_numbers_are_neither_zero_nor_infinite(scale: float) -> None:
    row = np.array([scale, 0.0], np.float32)
    assert np.array_equal(decode(body_of([b64(row)]), 1).vectors[0], row)


# ---- damage

GOOD = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]


def with_last(value: Any) -> bytes:
    return body_of([GOOD[0], GOOD[1], value])


def broken_base64(change: Callable[[str], str]) -> bytes:
    return body_of([b64(GOOD[0]), b64(GOOD[1]), change(b64(GOOD[2]))])


@pytest.mark.parametrize(
    ("vectors", "indices", "count", "why"),
    [
        (GOOD[:2], None, 1, "the response has 2 vectors for 1 text"),
        (GOOD[:1], None, 2, "the response has 1 vector for 2 texts"),
        (GOOD[:1], [1], 1, "index 1 is out of range for 1 text"),
        (["AA=="], None, 1, "a vector of 1 byte is not a list of 32-bit numbers"),
    ],
)
def test_one_is_singular(
    vectors: list[Any], indices: list[Any] | None, count: int, why: str
) -> None:
    with pytest.raises(BrokenResponse, match=f"{why}$"):
        decode(body_of(vectors, indices), count)


DAMAGES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not JSON: it is empty"),
    "html": (b"<!DOCTYPE html><html>", "HTML page"),
    "html after blanks": (b"\n  <HTML><body>", "HTML page"),
    "cut off": (body_of(GOOD)[:-7], "not JSON"),
    "trailing garbage": (body_of(GOOD) + b"x", "not JSON"),
    "sse": (b"data: " + body_of(GOOD), "not JSON"),
    "array": (b"[1]", "not a JSON object but a list"),
    "null": (b"null", "not a JSON object"),
    "text": (b'"hello"', "not a JSON object"),
    "no data": (b"{}", "no list of vectors"),
    "data null": (b'{"data":null}', "no list of vectors"),
    "data object": (b'{"data":{"0":[1]}}', "no list of vectors"),
    "data empty": (b'{"data":[]}', "the response has 0 vectors for 3"),
    "one missing": (body_of(GOOD[:2]), "the response has 2 vectors for 3"),
    "one more": (body_of([*GOOD, [7.0, 8.0]]), "the response has 4 vectors for 3"),
    "index twice": (body_of(GOOD, [0, 1, 1]), "index 1 appears twice"),
    "index too high": (body_of(GOOD, [0, 1, 3]), "index 3 is out of range"),
    "index negative": (body_of(GOOD, [0, 1, -1]), "out of range"),
    "index huge": (body_of(GOOD, [0, 1, 2**62]), "out of range"),
    "index text": (body_of(GOOD, ["0", "1", "2"]), "has the index '0'"),
    "index float": (body_of(GOOD, [0.0, 1.0, 2.0]), "has the index"),
    "index bool": (body_of(GOOD, [False, True, 2]), "has the index"),
    "index mixed": (body_of(GOOD, [0, None, 2]), "has the index 'None'"),
    "item null": (b'{"data":[null,null,null]}', "holds no vector"),
    "item number": (b'{"data":[1,2,3]}', "holds no vector"),
    "item without embedding": (b'{"data":[{"index":0},{"index":1},{"index":2}]}', "no vector"),
    "vector null": (with_last(None), "a vector is a NoneType"),
    "vector object": (with_last({"0": 1}), "a vector is a dict"),
    "vector empty": (with_last([]), "different sizes"),
    "all vectors empty": (body_of([[], [], []]), "empty"),
    "ragged": (with_last([5.0]), "different sizes"),
    "nested": (with_last([[5.0, 6.0]]), "not a number"),
    "element null": (with_last([5.0, None]), "not a number"),
    "element text": (with_last([5.0, "0.5"]), "not a number"),
    "element bool": (with_last([5.0, True]), "not a number"),
    "element too large": (with_last([5.0, 1e300]), "NaN or infinity"),
    "integer too large": (with_last([5.0, 10**15 * 10**300]), "not JSON|NaN or inf|number"),
    "zeros": (with_last([0.0, 0.0]), "all zeros"),
    "zeros in base64": (broken_base64(lambda _: b64([0, 0])), "all zeros"),
    "nan literal": (body_of(GOOD).replace(b"6.0", b"NaN"), "not JSON"),
    "1e999": (body_of(GOOD).replace(b"6.0", b"1e999"), "not JSON|NaN or infinity"),
    "nan in base64": (broken_base64(lambda _: b64([5, np.nan])), "NaN or infinity"),
    "infinity in base64": (broken_base64(lambda _: b64([5, -np.inf])), "NaN or infinity"),
    "base64 empty": (broken_base64(lambda _: ""), "different sizes"),
    "base64 odd length": (
        broken_base64(lambda _: base64.b64encode(b"seven b").decode()),
        "different sizes|no list of 32-bit",
    ),
    "base64 bad alphabet": (broken_base64(lambda s: "!" + s[1:]), "not valid base64"),
    "base64 urlsafe": (
        broken_base64(lambda _: base64.urlsafe_b64encode(b"\xff\xfb\xef\xff" * 2).decode()),
        "not valid base64",
    ),
    "base64 newline": (broken_base64(lambda s: s[:4] + "\n" + s[4:]), "not valid base64"),
    "base64 no padding": (broken_base64(lambda s: s.rstrip("=")), "not valid base64"),
    "base64 not ascii": (broken_base64(lambda s: "é" + s[1:]), "not valid base64"),
    "deep nesting": (b"[" * 20_000, "not JSON"),
    "20,000 digits": (b'{"data":' + b"9" * 20_000 + b"}", "not JSON|no list"),
    "utf-16": (json.dumps({"data": []}).encode("utf-16"), "not JSON"),
    "invalid utf-8": (b'{"data":"\xff\xfe"}', "not JSON"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_answer_is_refused_with_a_reason(name: str) -> None:
    body, words = DAMAGES[name]
    for layout in (body, parsed_in_full(body)):
        with pytest.raises(BrokenResponse, match=words) as caught:
            decode(layout, 3)
        assert len(str(caught.value)) < 200


def test_all_vectors_in_base64_of_a_length_no_float_has_are_refused() -> None:
    odd = base64.b64encode(b"sevenby").decode()
    with pytest.raises(BrokenResponse, match="7 bytes"):
        decode(body_of([odd, odd]), 2)
    with pytest.raises(BrokenResponse, match="7 bytes"):
        decode(body_of([odd, [1.0]]), 2)


def test_a_mixed_answer_with_bad_base64_is_refused_too() -> None:
    with pytest.raises(BrokenResponse, match="base64"):
        decode(body_of([[1.0], "!!!!"]), 2)


def test_a_wrong_size_names_both_sizes_and_is_not_retried() -> None:
    with pytest.raises(WrongDimensions, match=r"2 dimensions .* 64"):
        decode(body_of(GOOD), 3, 64)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_broken_response(body: bytes) -> None:
    with pytest.raises(BrokenResponse):
        decode(body, 1)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["data", "embedding", "index", "usage"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(JSON, JSON)
def test_no_json_raises_anything_but_broken_response(data: Any, usage: Any) -> None:
    body = json.dumps({"data": data, "usage": usage}).encode()
    try:
        rows = decode(body, len(data) if isinstance(data, list) else 1)
    except BrokenResponse:
        return
    assert len(rows.vectors) == len(data)
    assert np.isfinite(rows.vectors).all()
    assert rows.vectors.any(axis=1).all()


@given(st.binary(min_size=1, max_size=4), st.data())
def test_one_flipped_byte_is_noticed_or_changes_no_more_than_numbers(
    junk: bytes, draw: st.DataObject
) -> None:
    body = body_of([b64(row) for row in GOOD])
    at = draw.draw(st.integers(0, len(body) - 1))
    try:
        rows = decode(body[:at] + junk + body[at + len(junk) :], 3, 2)
    except BrokenResponse:
        return
    assert rows.vectors.shape == (3, 2)
    assert np.isfinite(rows.vectors).all()


# ---- base64 that is read without parsing it


def outcome(body: bytes, count: int) -> tuple[object, ...]:
    try:
        rows = decode(body, count)
    except BrokenResponse as error:
        return ("refused", str(error))
    return rows.vectors.tobytes(), rows.vectors.shape, rows.tokens


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What orjson parsed."""
    found: list[bytes] = []
    loads = orjson.loads

    def recorded(text: bytes) -> Any:
        found.append(text)
        return loads(text)

    monkeypatch.setattr(orjson, "loads", recorded)
    return found


@pytest.mark.parametrize("layout", [{}, {"separators": (",", ":")}, {"indent": 2}])
def test_base64_is_not_parsed_with_the_rest_of_the_body(
    layout: dict[str, Any], parsed: list[bytes]
) -> None:
    body = json.loads(body_of([b64(row) for row in GOOD], usage={"total_tokens": 3}))
    assert decode(json.dumps(body, **layout).encode(), 3).vectors.tolist() == GOOD
    (rest,) = parsed
    assert not [row for row in GOOD if b64(row).encode() in rest]


def test_a_body_with_floats_or_escaped_slashes_is_parsed_once(parsed: list[bytes]) -> None:
    rows = [[1.0, float(np.float32(0.1))], [3.0, 4.0]]
    vectors = [b64(np.frombuffer(b"\xff" * 3 + b"\x3f" + b"\xff" * 3 + b"\x3f", "<f4"))] * 2
    escaped = body_of(vectors).replace(b"/", b"\\/")
    assert b"\\/" in escaped
    for body in (body_of(rows), escaped):
        parsed.clear()
        decode(body, 2)
        assert parsed == [body]


@pytest.mark.parametrize(("size", "is_cut"), [(512, False), (768, True)])
def test_only_base64_that_takes_long_to_copy_is_cut(
    size: int, is_cut: bool, parsed: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_WORTH_CUTTING", WORTH_CUTTING)
    body = body_of([b64([1.0] * size)] * 10)
    assert decode(body, 10).vectors.tolist() == [[1.0] * size] * 10
    assert (parsed != [body]) is is_cut


@pytest.mark.parametrize("vector", [b64([1.0, 2.0]), "!"])
def test_a_body_with_much_besides_the_vectors_is_parsed_once(
    vector: str, parsed: list[bytes]
) -> None:
    body = body_of([vector], more="x" * 200_000)
    assert outcome(body, 1)[0] == ("refused" if vector == "!" else struct.pack("<2f", 1.0, 2.0))
    assert parsed == [body]


PIECES = st.sampled_from(
    b'"|\\|\\/|0|9|e0|.0|,|}|{|:|=|/|A| |\n|\xff'.split(b"|")
    + b'"embedding":|"embedding":"|"AACAPw=="|"index":1'.split(b"|")
)


@given(
    MATRICES,
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 3), PIECES), max_size=3),
    st.booleans(),
    st.booleans(),
)
def test_a_body_with_any_change_is_read_as_if_all_of_it_were_parsed(
    matrix: np.ndarray, changes: list[tuple[int, int, bytes]], escaped: bool, compact: bool
) -> None:
    body = body_of([b64(row) for row in matrix], usage={"total_tokens": 3})
    if compact:
        body = body.replace(b'": ', b'":')
    if escaped:
        body = body.replace(b"/", b"\\/")
    for place, removed, piece in changes:
        at = place % (len(body) + 1)
        body = body[:at] + piece + body[at + removed :]
    assert outcome(body, len(matrix)) == outcome(parsed_in_full(body), len(matrix))


ROW = b64([1.0, 2.0])


@pytest.mark.parametrize(
    "body",
    [
        '{"x":{"embedding":"%s"},"data":[{"embedding":19,"index":0}]}',  # 19: where it starts
        '{"x":{"embedding":"%s"},"data":[{"embedding":19.0,"index":0}]}',
        '{"data":[{"index":0}],"embedding":"%s"}',
        '{"data":[{"a\\"embedding":"%s","index":0}]}',  # another key
        '{"data":[{"index":0,"x":"\\"embedding\\":\\"%s"}]}',  # in a string
        '{"data":[{"index":0,"x":"embedding":"%s"}]}',
        '{"data":[{"embedding":"%s"}]',
        '{"data":[{"embedding":"%s',
        '{"data":[{"embedding":"',
    ],
)
def test_base64_that_is_not_the_vector_of_an_item_is_not_taken_for_one(body: str) -> None:
    filled = body.replace("%s", ROW).encode()
    with pytest.raises(BrokenResponse):
        decode(filled, 1)


@pytest.mark.parametrize(
    ("before", "after"), [("", "0"), ("", "e0"), ("", ".0"), ("", "x"), ("0", ""), ("-", "")]
)
def test_what_stands_next_to_the_base64_does_not_become_a_part_of_its_placeholder(
    before: str, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_PLACEHOLDERS", 0)  # so that 22e0 would be equal to one
    with pytest.raises(BrokenResponse, match="not JSON"):
        decode(f'{{"data":[{{"embedding":{before}"{ROW}"{after}}}]}}'.encode(), 1)


def test_the_last_of_two_vectors_of_an_item_counts_as_in_json() -> None:
    other = b64([3.0, 4.0])
    body = f'{{"data":[{{"embedding":"{ROW}","embedding":"{other}"}}]}}'.encode()
    assert decode(body, 1).vectors.tolist() == [[3.0, 4.0]]
    body = f'{{"data":[{{"embedding":"{ROW}","embedding":[5,6]}}]}}'.encode()
    assert decode(body, 1).vectors.tolist() == [[5.0, 6.0]]


# ---- usage, and other oddities


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 7, "total_tokens": 9}, 9),
        ({"prompt_tokens": 7}, 7),
        ({"total_tokens": 0}, 0),
        ({"total_tokens": None, "prompt_tokens": 7}, 7),
        ({"total_tokens": "9"}, None),
        ({"total_tokens": -1}, None),
        ({"total_tokens": True}, None),
        ({"total_tokens": 9.0}, None),
        ({"total_tokens": 2**50}, None),
        ({}, None),
        (None, None),
        ("nine", None),
        ([9], None),
    ],
)
def test_a_strange_or_missing_usage_never_loses_a_valid_vector(usage: Any, tokens: Any) -> None:
    rows = decode(body_of(GOOD, usage=usage), 3)
    assert rows.vectors.tolist() == GOOD
    assert rows.tokens == tokens


def test_a_byte_order_mark_and_another_model_name_are_harmless() -> None:
    body = b"\xef\xbb\xbf" + body_of(GOOD, model="something else")
    assert decode(body, 3).vectors.tolist() == GOOD


# ---- compression that was not requested


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda data: zlib.compress(data)[2:-4]),
        ("identity", lambda data: data),
        ("", lambda data: data),
        ("gzip, gzip", lambda data: gzip.compress(gzip.compress(data))),
        ("deflate, gzip", lambda data: gzip.compress(zlib.compress(data))),
    ],
)
def test_known_encodings_are_decompressed(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    assert decompress(pack(b"vectors"), encoding, 100) == b"vectors"


@pytest.mark.parametrize(
    ("body", "encoding", "words"),
    [
        (b"x", "br", "'br'"),
        (b"x", "zstd", "'zstd'"),
        (b"x", "z" * 500, "encoded as"),
        (b"not gzip", "gzip", "damaged"),
        (gzip.compress(b"vectors", mtime=0)[:-9], "gzip", "cut off"),
        (gzip.compress(b"vectors" * 99, mtime=0)[:30], "gzip", "cut off|damaged"),
        (gzip.compress(b"vectors", mtime=0)[:-8] + b"12345678", "gzip", "damaged"),
        (b"", "gzip", "cut off"),
        (b"x", "gzip, gzip, gzip", "more than 2 times"),
        (b"x", ", ".join(["identity"] * 4000), "more than 2 times"),
        (b"x" * 1001, "gzip", "compressed response is too large"),
    ],
)
def test_an_unknown_damaged_or_truncated_encoding_is_refused_with_a_reason(
    body: bytes, encoding: str, words: str
) -> None:
    with pytest.raises(BrokenResponse, match=words) as caught:
        decompress(body, encoding, 1000)
    assert len(str(caught.value)) < 120


def gigabyte() -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    zeros = bytes(1 << 20)
    return b"".join(packer.compress(zeros) for _ in range(256)) + packer.flush()


@pytest.mark.parametrize("twice", [False, True])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(twice: bool) -> None:
    bomb = gigabyte()
    encoding = "gzip"
    if twice:
        bomb, encoding = gzip.compress(bomb), "gzip, gzip"
    tracemalloc.start()
    try:
        with pytest.raises(BrokenResponse, match="too large"):
            decompress(bomb, encoding, MAX_RESPONSE_BYTES)
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_RESPONSE_BYTES
    finally:
        tracemalloc.stop()


def test_a_body_just_within_the_limit_is_unpacked() -> None:
    assert len(decompress(gzip.compress(bytes(5000)), "gzip", 5000)) == 5000
    with pytest.raises(BrokenResponse, match="too large"):
        decompress(gzip.compress(bytes(5001)), "gzip", 5000)


# ---- responses that are slow to parse

MANY = 1_000_000
SLOW = {
    "a million empty objects": b'{"data":[' + b"{}," * MANY + b"{}]}",
    "a million lists in lists": b'{"data":['
    + b",".join([b"[" * 500 + b"]" * 500] * (MANY // 500))
    + b"]}",
    "a million keys": b"{" + b",".join(b'"%d":1' % n for n in range(MANY)) + b"}",
    "ten lists of 300,000 numbers": b'{"data":['
    + b",".join([b'{"embedding":[' + b"1," * 300_000 + b"1]}"] * 10)
    + b"]}",
    "ten lists of 300,000 strings": b'{"data":['
    + b",".join([b'{"embedding":[' + b'"",' * 300_000 + b'""]}'] * 10)
    + b"]}",
    "ten texts of a megabyte": b'{"data":['
    + b",".join([b'"%b"' % (b"a" * (1 << 20))] * 10)
    + b"]}",
}


@pytest.mark.parametrize("name", SLOW)
def test_an_answer_that_is_slow_to_parse_is_not_parsed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_parse", lambda body: pytest.fail("it was parsed"))
    with pytest.raises(BrokenResponse, match="too large or too deeply nested for 10 vectors"):
        decode(SLOW[name], 10)


@pytest.mark.parametrize("count", [1, 10, 100])
@pytest.mark.parametrize("indent", [None, 2])
def test_the_largest_vectors_as_long_floats_do_not_count_as_slow(
    count: int, indent: int | None
) -> None:
    numbers = [float(x) for x in np.linspace(-1e-3, 0.1234567890123456, 4096)]
    data = [{"object": "embedding", "index": i, "embedding": numbers} for i in range(count)]
    body = json.dumps({"object": "list", "data": data}, indent=indent).encode()
    assert decode(body, count).vectors.shape == (count, 4096)


def test_little_endian_is_read_as_such() -> None:
    text = base64.b64encode(struct.pack("<2f", 1.5, -2.0)).decode()
    assert decode(body_of([text]), 1).vectors.tolist() == [[1.5, -2.0]]
