"""``EmbedBatch`` adds two columns to one batch; its pickles and logs never show the key."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from nexusflow_integrations import Budget
from nexusflow_integrations.errors import BudgetExceededError, ConfigurationError
from nexusflow_integrations.local import LocalServer

pytest.importorskip("ray.exceptions")  # "ray" alone is also the name of this folder
pa = pytest.importorskip("pyarrow")

from nexusflow_integrations.ray import DriverKey, EmbedBatch  # noqa: E402

pytestmark = pytest.mark.ray
KEY = "sk-air-of-the-driver-0123456789"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", KEY)


@pytest.fixture
def server(key: None) -> Any:
    with LocalServer("hash", api_key=KEY, record_texts=True) as running:
        yield running


def embed_batch(server: Any, **options: Any) -> EmbedBatch:
    return EmbedBatch(base_url=server.base_url, **{"dimensions": 64, **options})


def test_importing_the_module_neither_starts_ray_nor_asks_for_one() -> None:
    code = (
        "import nexusflow_integrations.ray as ours, ray;"
        "ours.EmbedBatch(limits=ours.ClusterLimits(requests_per_minute=60));"
        "assert not ray.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_without_ray_the_error_is_one_sentence_that_says_what_to_type() -> None:
    code = "import sys; sys.modules['ray'] = None; import nexusflow_integrations.ray"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stderr.strip().splitlines()[-1] == (
        "ImportError: nexusflow_integrations.ray needs ray:"
        ' pip install "nexusflow-integrations[ray]"'
    )


async def test_a_table_gets_fixed_size_vectors_and_null_where_there_is_none(server: Any) -> None:
    table = pa.table({"id": [7, 8, 9], "text": ["a b", "", "c d"], "n": [1.0, None, 3.0]})
    out = await embed_batch(server)(table)
    assert out.schema.field("embedding").type == pa.list_(pa.float32(), 64)
    assert out.drop_columns(["embedding", "embedding_error"]) == table
    assert out["embedding"].is_valid().to_pylist() == [True, False, True]
    assert out["embedding_error"].to_pylist() == [
        None,
        "InvalidInputError: the text is blank",
        None,
    ]
    rows = np.array([out["embedding"][place].as_py() for place in (0, 2)], dtype=np.float32)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1)


async def test_a_dict_of_arrays_gets_rows_of_nan_where_there_is_no_vector(server: Any) -> None:
    batch = {"id": np.arange(3), "text": np.array(["a b", None, "c d"], dtype=object)}
    out = await embed_batch(server)(batch)
    assert out["embedding"].dtype == np.float32
    assert out["embedding"].shape == (3, 64)
    assert np.isnan(out["embedding"]).all(axis=1).tolist() == [False, True, False]
    assert out["embedding_error"][0] is None
    assert out["embedding_error"][1].startswith("InvalidInputError: ")
    assert out["id"] is batch["id"]


async def test_an_empty_batch_has_the_schema_of_a_full_one(server: Any) -> None:
    step = embed_batch(server)
    full = await step(pa.table({"text": ["a"]}))
    empty = await step(pa.table({"text": pa.array([], pa.string())}))
    assert empty.schema == full.schema


async def test_columns_are_named_by_the_caller_and_replaced_where_they_exist(server: Any) -> None:
    step = embed_batch(server, text="body", embedding="vector", error="why")
    once = await step(pa.table({"body": ["a b"]}))
    assert once.column_names == ["body", "vector", "why"]
    assert (await step(once)).column_names == ["body", "vector", "why"]
    with pytest.raises(ConfigurationError, match="no column 'body' among 'text'"):
        await step(pa.table({"text": ["a"]}))


async def test_a_failure_of_the_whole_batch_is_raised_or_collected_as_set(server: Any) -> None:
    table = pa.table({"text": [f"text {n} of some more words" for n in range(400)]})
    spent = {"budget": Budget(tokens=1_500), "batch_size": 2, "max_concurrency": 2}
    with pytest.raises(BudgetExceededError):
        await embed_batch(server, **spent)(table)
    out = await embed_batch(server, on_error="collect", **spent)(table)
    there = np.array(out["embedding"].is_valid())
    assert 0 < there.sum() < 400
    errors = np.array(out["embedding_error"].to_pylist(), dtype=object)
    assert all(error is None for error in errors[there])
    assert all(error.startswith("BudgetExceededError: ") for error in errors[~there])


async def test_it_pickles_without_its_client_and_without_a_key(server: Any) -> None:
    step = embed_batch(server)
    await step(pa.table({"text": ["a b"]}))
    data = pickle.dumps(step)
    assert KEY.encode() not in data
    out = await pickle.loads(data)(pa.table({"text": ["a b"]}))
    assert out["embedding"].null_count == 0


def test_a_key_from_the_driver_is_hidden_in_every_repr() -> None:
    carried = DriverKey()
    assert KEY not in repr(carried)
    assert KEY not in str({"api_key": carried})
    assert pickle.loads(pickle.dumps(carried)).get_secret_value() == KEY
    assert KEY not in repr(EmbedBatch(carried))


def test_a_key_in_plain_text_is_not_taken_and_not_repeated() -> None:
    with pytest.raises(ConfigurationError, match="DriverKey") as caught:
        EmbedBatch(KEY)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"dimensions": 100}, {"on_error": "ignore"}, {"timeout": 0}])
def test_an_impossible_setting_is_found_before_the_first_text(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        EmbedBatch(**wrong)
