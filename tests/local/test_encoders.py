"""Each local model gives stable vectors and token counts, alone and in batches."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading

import numpy as np
import pytest

from nexusflow_integrations.local import MODELS, Encoder, load_encoder
from nexusflow_integrations.local.gated import in_latin_script
from nexusflow_integrations.local.minilm import _batches

TEXTS = [
    "A cat sleeps on the sofa.",
    "一只猫在沙发上睡觉。",
    "x",
    "1234567890",
    "!?",
    "\u200b",
    "Ein Satz auf Deutsch über Äpfel.",
    "Кошка спит на диване.",
    "mixed 中文 and English words",
    "long text " * 200,
    "emoji 🐼🐼🐼",
    "line\nbreaks\tand  spaces",
]


@pytest.fixture(scope="module", params=list(MODELS))
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return load_encoder(request.param)


def test_rows_are_float32_of_the_native_size_and_unit_length(encoder: Encoder) -> None:
    rows = encoder.encode(TEXTS)
    assert rows.dtype == np.float32
    assert rows.shape == (len(TEXTS), encoder.native_size)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_a_text_has_one_vector_to_the_last_bit_whatever_is_beside_it(encoder: Encoder) -> None:
    together = encoder.encode(TEXTS)
    backwards = encoder.encode(TEXTS[::-1])[::-1]
    assert np.array_equal(together, backwards)
    for index, text in enumerate(TEXTS):
        assert np.array_equal(encoder.encode([text])[0], together[index]), text


def test_different_texts_have_different_vectors(encoder: Encoder) -> None:
    rows = encoder.encode(["a red house", "a red horse", "一座红房子", "一匹红马"])
    similarity = rows @ rows.T - np.eye(4)
    assert similarity.max() < 0.99


def test_tokens_are_counted_one_number_a_text_and_at_least_one(encoder: Encoder) -> None:
    counts = encoder.count_tokens(TEXTS)
    assert len(counts) == len(TEXTS)
    assert min(counts) >= 1
    assert counts[TEXTS.index("long text " * 200)] == 400


def test_a_chinese_text_costs_about_a_token_a_character_or_less(encoder: Encoder) -> None:
    text = "小熊猫生活在喜马拉雅山脉的森林里"
    assert 4 <= encoder.count_tokens([text])[0] <= len(text)


def test_an_encoder_is_loaded_by_its_name(encoder: Encoder) -> None:
    assert encoder.name in MODELS
    assert type(load_encoder(encoder.name)) is type(encoder)
    assert encoder.native_size <= encoder.block <= 2048


def test_threads_may_encode_at_once(encoder: Encoder) -> None:
    expected = encoder.encode(TEXTS)
    got: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: got.append(encoder.encode(TEXTS))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 3
    assert all(np.array_equal(rows, expected) for rows in got)


@pytest.mark.slow
def test_a_fresh_process_loads_the_default_model_and_gets_the_same_bits() -> None:
    code = (
        "from nexusflow_integrations.local import load_encoder; import hashlib; "
        f"print(hashlib.sha256(load_encoder().encode({TEXTS!r}).tobytes()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = hashlib.sha256(load_encoder().encode(TEXTS).tobytes()).hexdigest()
    assert done.stdout.strip() == here


def test_an_unknown_model_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match="minilm-use-gated, use, minilm, hash"):
        load_encoder("text-embedding-v4")


def test_only_the_hash_encoder_is_called_not_semantic() -> None:
    assert [name for name, about in MODELS.items() if "NOT semantic" in about] == ["hash"]


@pytest.mark.parametrize(
    ("text", "latin"),
    [
        ("plain English", True),
        ("naïve café Straße", True),
        ("42", True),
        ("你好世界", False),
        ("Привет", False),
        ("a long English sentence about 熊猫", True),
        ("iPhone 手机价格", False),
        ("مرحبا", False),
    ],
)
def test_the_gate_depends_on_the_script(text: str, latin: bool) -> None:
    assert in_latin_script(text) is latin


def test_batches_hold_each_text_once_within_the_budget_of_tokens() -> None:
    lengths = [3, 256, 100, 17, 17, 90, 2, 256, 60]
    batches = list(_batches(lengths))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or len(batch) * longest <= 256
    assert list(_batches([])) == []
