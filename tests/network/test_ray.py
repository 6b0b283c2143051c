"""The Ray example connects to no other machine, except for one request by Ray itself."""

from __future__ import annotations

import sys

import pytest

from .conftest import EXAMPLES, Newcomer

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]

METADATA = "169.254.169.254"
DNS = 53


@pytest.fixture(autouse=True)
def _ray() -> None:
    pytest.importorskip("ray", reason="comes with the extra `ray`")


@pytest.fixture
def command(newcomer: Newcomer) -> list[str]:
    (newcomer.work / "notes").mkdir()
    (newcomer.work / "notes" / "pandas.md").write_text("Red pandas sleep in trees.\n")
    return [sys.executable, str(EXAMPLES / "ray_corpus.py"), "notes"]


def test_ray_asks_which_cloud_it_is_in_and_connects_to_no_other_host(
    newcomer: Newcomer, command: list[str]
) -> None:
    did = newcomer.traced(command)
    assert {item.host for item in did.distant if item.port != DNS} <= {METADATA}
    assert "usage-stats" not in did.text
    assert did.exposed == set()
    elsewhere = {str(path) for path in newcomer.wrote_elsewhere(did)}
    # Its object store is shared memory.
    assert {path for path in elsewhere if not path.startswith("/dev/shm/plasma")} == set()
    newcomer.check_left("`ray_corpus.py`", temp=("ray",))


def test_it_runs_where_there_is_only_loopback(newcomer: Newcomer, command: list[str]) -> None:
    assert "1 rows in" in newcomer.alone(command)
    assert (newcomer.work / "ray-corpus" / "parquet").is_dir()
    newcomer.check_left("`ray_corpus.py`", temp=("ray",))
