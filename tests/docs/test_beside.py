"""The statements of docs/guides/beside.md about tools that run a program are true."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from nexusflow_integrations import NexusFlow
from nexusflow_integrations.local import LocalServer

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "beside.md").read_text()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    with LocalServer("hash") as running:
        monkeypatch.setenv("NEXUSFLOW_API_KEY", running.api_key)
        monkeypatch.setenv("NEXUSFLOW_BASE_URL", running.base_url)
        yield running


def test_respx_does_not_see_the_default_transport(server: LocalServer) -> None:
    respx = pytest.importorskip("respx")
    with respx.mock(assert_all_called=False) as router:
        router.post(url__regex=".*").mock(return_value=httpx.Response(500))
        assert NexusFlow().embed("a").shape == (1024,)
        assert router.calls.call_count == 0
    assert server.stats.requests == 1


def test_vcrpy_replays_the_default_transport_and_its_file_has_no_key(
    server: LocalServer, tmp_path: Path
) -> None:
    vcr = pytest.importorskip("vcr")
    recorder = vcr.VCR(filter_headers=["authorization"], match_on=["method", "path", "body"])
    file = tmp_path / "embeddings.yaml"
    client = NexusFlow(dimensions=64)
    with recorder.use_cassette(str(file)):
        first = client.embed(["a", "b"])
    assert server.stats.requests == 1
    with recorder.use_cassette(str(file), record_mode="none"):
        again = NexusFlow("sk-air-another", dimensions=64).embed(["a", "b"])
    assert server.stats.requests == 1
    assert (first == again).all()
    assert server.api_key not in file.read_text()


def test_a_streamlit_app_makes_one_client_for_all_its_runs(
    server: LocalServer, tmp_path: Path
) -> None:
    testing = pytest.importorskip("streamlit.testing.v1")
    (code,) = re.findall(r"^```py\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "app.py").write_text(code)
    app = testing.AppTest.from_file(str(tmp_path / "app.py"), default_timeout=60)
    app.secrets["NEXUSFLOW_API_KEY"] = server.api_key
    for _ in range(2):
        app.run()
        assert not app.exception
        assert [one.value for one in app.markdown] == ["`(2, 256)`"]
    assert server.stats.requests == 1
