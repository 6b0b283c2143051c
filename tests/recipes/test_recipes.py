"""The recipes of docs/recipes.md run unchanged on the engines they are for."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from nexusflow_integrations import NexusFlow
from nexusflow_integrations.local import LocalServer

if TYPE_CHECKING:
    from .conftest import Recipe

pytestmark = [pytest.mark.recipes, pytest.mark.timeout(300)]


def vectors_of(texts: list[str]) -> np.ndarray:
    """Return the vectors of the client alone, without engine and cache."""
    return np.asarray(NexusFlow(dimensions=256).embed(texts))


def test_a_pandas_column_holds_a_vector_a_row(run: Recipe) -> None:
    frame = run("pandas")["frame"]
    assert np.array_equal(np.stack(frame["embedding"]), vectors_of(list(frame["text"])))


def test_dask_writes_fixed_size_float32_vectors_beside_their_ids(run: Recipe) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    documents = run("Dask")["documents"]
    table = pq.read_table("embedded").sort_by("id")
    column = table["embedding"].combine_chunks()
    assert pa.types.is_fixed_size_list(column.type)
    assert column.type.value_type == pa.float32()
    assert table["id"].to_pylist() == list(documents["id"])
    rows = column.flatten().to_numpy().reshape(-1, 256)
    assert np.array_equal(rows, vectors_of(list(documents["text"])))


def test_a_text_that_cannot_be_sent_costs_a_dask_bag_one_record(run: Recipe) -> None:
    records = run("Dask")["records"]
    assert [record["id"] for record in records] == [0, 1, 2]
    assert [record["error"] is None for record in records] == [True, False, True]
    good = [record["embedding"] for record in records if record["error"] is None]
    assert np.array_equal(np.stack(good), vectors_of(["a text", "another text"]))


def test_two_dask_processes_with_one_cache_pay_for_no_text_twice(
    run: Recipe, server: LocalServer
) -> None:
    import dask.dataframe as dd
    import pandas as pd
    from distributed import Client, LocalCluster

    names = run("Dask")
    seen = len(server.stats.received)
    texts = [f"shared {n % 60}" for n in range(240)]
    frame = dd.from_pandas(pd.DataFrame({"id": range(240), "text": texts}), npartitions=8)
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
        Client(cluster, timeout=60) as client,
    ):
        pids = set(client.run(os.getpid).values())
        done = frame.map_partitions(names["embed_partition"], meta=names["meta"]).compute()
    assert len(pids) == 2
    assert os.getpid() not in pids
    rows = np.stack(done.sort_values("id")["embedding"]).astype(np.float32)
    paid = server.stats.received[seen:]
    assert sorted(paid) == sorted(set(texts))
    assert np.array_equal(rows, vectors_of(texts))


def test_daft_gets_vectors_of_its_own_embedding_type(run: Recipe) -> None:
    import daft

    names = run("Daft")
    assert names["frame"].schema()["embedding"].dtype == daft.DataType.embedding(
        daft.DataType.float32(), 256
    )
    assert [row["id"] for row in names["rows"]] == [1, 2]
    rows = np.stack([row["embedding"] for row in names["rows"]])
    assert np.array_equal(rows, vectors_of([row["text"] for row in names["rows"]]))


def test_daft_keeps_vector_and_id_together_over_many_batches(
    run: Recipe, server: LocalServer
) -> None:
    names = run("Daft")
    daft, embed_text = names["daft"], names["embed_text"]
    texts = [f"document {n}" for n in range(2500)]
    frame = daft.from_pydict({"id": list(range(2500)), "text": texts}).with_column(
        "embedding",
        embed_text(daft.col("text"), provider=names["provider"], dimensions=256),
    )
    rows = frame.sort("id").to_pydict()
    assert rows["id"] == list(range(2500))
    assert np.array_equal(np.stack(rows["embedding"]), vectors_of(texts))
    assert server.stats.duplicates.keys() <= set(texts)  # paid again by vectors_of, no more
    assert max(server.stats.duplicates.values()) == 2


def test_the_objects_that_daft_sends_to_its_workers_contain_no_key(
    run: Recipe, server: LocalServer
) -> None:
    names = run("Daft")
    descriptor = names["provider"].get_text_embedder(dimensions=256)
    cloudpickle = pytest.importorskip("cloudpickle")
    shipped = cloudpickle.dumps(descriptor)
    assert server.api_key.encode() not in shipped
    assert pickle.loads(shipped).get_dimensions().size == 256


def test_dspy_searches_with_our_vectors(run: Recipe) -> None:
    names = run("DSPy")
    assert names["search"]("shuffle the list").passages == ["Shuffle a list in place."]
    assert np.array_equal(names["embedder"](names["corpus"]), vectors_of(names["corpus"]))


def test_spark_gets_a_vector_a_row(run: Recipe) -> None:
    pytest.importorskip("pyspark")
    if shutil.which("java") is None:
        pytest.skip("there is no Java")
    rows = run("Spark")["rows"]
    assert [row["id"] for row in rows] == list(range(100))
    found = np.asarray([row["embedding"] for row in rows], np.float32)
    assert np.array_equal(found, vectors_of([row["text"] for row in rows]))


def test_every_recipe_of_the_page_is_tested() -> None:
    from .conftest import recipes

    source = Path(__file__).read_text()
    assert all(f'run("{heading}")' in source for heading in recipes())
