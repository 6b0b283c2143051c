"""The adapter works in LanceDB's tables."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.embeddings import get_registry
from lancedb.pydantic import LanceModel, Vector

import nexusflow_integrations.lancedb
from nexusflow_integrations.errors import AuthenticationError, ConfigurationError, InvalidInputError
from nexusflow_integrations.local import LocalServer

ROWS = [
    {"text": "Red pandas climb trees."},
    {"text": "Submarines dive under the ice."},
    {"text": "Bread needs flour and water."},
]


def make(**settings: Any) -> Any:
    """Make the function as LanceDB's users do."""
    return get_registry().get("nexusflow").create(**{"dimensions": 256, **settings})


def table(folder: Path, function: Any) -> Any:
    """Make a table of texts with their vectors."""

    class Row(LanceModel):
        text: str | None = function.SourceField(default=None)
        vector: Vector(function.ndims()) = function.VectorField()

    return lancedb.connect(folder).create_table("texts", schema=Row)


SEVERAL = [
    pytest.param(lambda: np.array(["a", "b"]), id="array"),
    pytest.param(lambda: np.array(["a", "b"], dtype=object), id="array of objects"),
    pytest.param(lambda: (text for text in "ab"), id="generator"),
    pytest.param(lambda: pa.chunked_array([["a"], ["b"]]), id="column"),
]


@pytest.mark.parametrize("several", SEVERAL)
def test_texts_may_be_any_column_and_a_query_is_one_string(several: Any) -> None:
    function = make()
    found, expected = (
        function.compute_source_embeddings(several()),
        function.generate_embeddings(["a", "b"]),
    )
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(InvalidInputError, match="must be a string"):
        function.compute_query_embeddings(several())


def test_the_registry_knows_it_by_name() -> None:
    assert get_registry().get("nexusflow") is nexusflow_integrations.lancedb.NexusFlowEmbeddings


def test_a_table_finds_the_nearest_row(tmp_path: Path) -> None:
    rows = table(tmp_path, make())
    rows.add(ROWS)
    (found,) = rows.search("Which pandas climb?").limit(1).to_list()
    assert found["text"] == "Red pandas climb trees."
    assert len(found["vector"]) == 256


async def test_an_async_table_finds_the_nearest_row(tmp_path: Path) -> None:
    table(tmp_path, make()).add(ROWS)
    rows = await (await lancedb.connect_async(tmp_path)).open_table("texts")
    await rows.add([{"text": "Bicycles have two wheels."}])
    (found,) = await (await rows.search("wheels of bicycles")).limit(1).to_list()
    assert found["text"] == "Bicycles have two wheels."


def test_another_process_reopens_a_table_and_searches_it(tmp_path: Path) -> None:
    table(tmp_path, make()).add(ROWS)
    code = (
        "import sys, lancedb, nexusflow_integrations.lancedb\n"
        "rows = lancedb.connect(sys.argv[1]).open_table('texts')\n"
        "print(rows.search('flour for bread').limit(1).to_list()[0]['text'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout == "Bread needs flour and water.\n"


def test_a_table_stores_neither_key_nor_endpoint(
    tmp_path: Path, server: LocalServer, key: str
) -> None:
    get_registry().set_var("nexusflow_key", key)
    function = make(api_key="$var:nexusflow_key", query_instruction="Find: ")
    rows = table(tmp_path, function)
    rows.add(ROWS)
    stored = str(rows.schema.metadata)
    assert "Find: " in stored
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert key not in stored
    assert key.encode() not in written
    assert server.base_url.encode() not in written
    assert key not in repr(function)
    assert key.encode() not in pickle.dumps(function)


def test_a_key_that_a_table_would_store_is_refused(key: str) -> None:
    for hard_coded in (key, f"$var:unknown:{key}"):
        with pytest.raises(ValueError, match="api_key") as refused:
            make(api_key=hard_coded)
        assert key not in str(refused.value)


@pytest.mark.parametrize("name", ["base_url", "default_headers", "http_client"])
def test_a_table_cannot_say_where_the_key_goes(name: str, key: str) -> None:
    with pytest.raises(ValueError, match=name) as refused:
        make(**{name: key})
    assert key not in str(refused.value)


def test_only_searches_get_the_query_instruction(tmp_path: Path, server: LocalServer) -> None:
    rows = table(tmp_path, make(query_instruction="Find: "))
    rows.add(ROWS[:1])
    rows.search("pandas").limit(1).to_list()
    assert server.stats.received == ("Red pandas climb trees.", "Find: pandas")


def test_rows_without_a_text_get_no_vector(tmp_path: Path, server: LocalServer) -> None:
    assert [row is None for row in make().generate_embeddings(["a", "", None])] == [
        False,
        True,
        True,
    ]
    rows = table(tmp_path, make())
    rows.add([*ROWS, {"text": None}], on_bad_vectors="drop")
    # Some versions of LanceDB drop such a row, some keep it.
    found = [row for row in rows.to_arrow().to_pylist() if row["vector"] is not None]
    assert [row["text"] for row in found] == [row["text"] for row in ROWS]


def test_one_call_has_many_requests_in_flight(slow_server: LocalServer, tmp_path: Path) -> None:
    table(tmp_path, make()).add([{"text": f"text number {number}"} for number in range(120)])
    assert slow_server.stats.requests == 12
    assert slow_server.stats.max_in_flight >= 4


def test_a_failing_search_raises_our_error_at_once(
    tmp_path: Path, server: LocalServer, wrong_key: str
) -> None:
    with pytest.raises(AuthenticationError) as refused:
        table(tmp_path, make()).search("pandas").limit(1).to_list()
    assert wrong_key not in str(refused.value)
    assert server.stats.requests == 1


def test_a_failing_add_raises_lancedbs_error_with_the_text_of_ours(
    tmp_path: Path, server: LocalServer, wrong_key: str
) -> None:
    with pytest.raises((RuntimeError, OSError), match="401 invalid_api_key") as refused:
        table(tmp_path, make()).add(ROWS)
    assert wrong_key not in str(refused.value)
    assert server.stats.requests == 1


def test_an_impossible_size_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match="dimensions"):
        make(dimensions=7)
