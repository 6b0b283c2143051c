"""examples/ray_corpus.py can be killed and run again, and pays for each text once."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray.data")
psutil = pytest.importorskip("psutil")

import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from nexusflow_integrations.local import LocalServer  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]
SCRIPT = Path(__file__).parents[2] / "examples" / "ray_corpus.py"
KEY = "sk-air-of-the-ray-example"
ROWS = 2_000
WORKERS, CONCURRENCY, BATCH = 2, 4, 10
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def server() -> Iterator[LocalServer]:
    # Slow enough to kill a run midway, and slightly above the limit that the runs set.
    with LocalServer("hash", api_key=KEY, requests_per_minute=1_500) as running:
        yield running


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    table = pa.table(
        {
            "id": [f"p{n}" for n in range(ROWS)],
            "text": [f"passage {n} of the corpus" for n in range(ROWS)],
            "source": ["made up"] * ROWS,
        }
    )
    path = tmp_path / "corpus.parquet"
    pq.write_table(table, path, row_group_size=500)
    return path


@pytest.fixture
def start(tmp_path: Path, corpus: Path, server: LocalServer) -> Iterator[Start]:
    """Start the example; whatever it leaves behind is ended with the test."""
    started: list[psutil.Process] = []
    environment = {
        **os.environ,
        "NEXUSFLOW_API_KEY": KEY,
        "NEXUSFLOW_BASE_URL": server.base_url,
        "RAY_AUTH_MODE": "disabled",
        "PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[1]), *sys.path]),
    }
    environment.pop("RAY_ADDRESS", None)

    def run(source: Path = corpus, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(SCRIPT), str(source), "--out", str(tmp_path / "out")]
        command += ["--dimensions", "64", "--workers", str(WORKERS), *more]
        command += ["--max-concurrency", str(CONCURRENCY), "--requests-per-minute", "1200"]
        with (tmp_path / "log").open("a") as log:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait(60)


def wait_until(holds: Callable[[], Any], seconds: float = 400.0) -> Any:
    until = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.05)
    return found


def workers_of(process: subprocess.Popen[str]) -> list[Any]:
    """The processes of Ray that embed for ``process``."""
    family = psutil.Process(process.pid).children(recursive=True)
    return [child for child in family if "EmbedBatch" in _command(child)]


def _command(process: Any) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it ended as we looked
        return ""


def assert_complete(process: subprocess.Popen[str], out: Path) -> None:
    said, _ = process.communicate(timeout=800)
    assert process.returncode == 0, (out.parent / "log").read_text()[-3_000:]
    assert f"{ROWS} in Chroma, 0 without a vector" in said
    table = pq.read_table(out / "parquet")
    assert sorted(table["id"].to_pylist()) == sorted(f"p{n}" for n in range(ROWS))
    assert table["embedding"].null_count == 0
    assert table["embedding"].type == pa.list_(pa.float32(), 64)


def test_a_driver_that_is_killed_loses_nothing_and_pays_again_at_most_what_was_in_flight(
    start: Start, server: LocalServer, tmp_path: Path
) -> None:
    first = start()
    wait_until(lambda: server.stats.texts > ROWS / 4 or first.poll() is not None)
    assert first.poll() is None, (tmp_path / "log").read_text()[-3_000:]
    family = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGKILL)
    first.wait(60)
    # All processes that it started end with it, also the Chroma server: nothing more is paid for.
    _, alive = psutil.wait_procs(family, timeout=200)
    assert not alive
    assert server.stats.texts < ROWS
    assert_complete(start(), tmp_path / "out")
    assert ROWS <= server.stats.texts <= ROWS + WORKERS * CONCURRENCY * BATCH
    paid = server.stats.texts
    assert_complete(start(), tmp_path / "out")
    assert server.stats.texts == paid


def test_a_worker_that_is_killed_is_replaced_and_its_texts_in_flight_alone_are_paid_again(
    start: Start, server: LocalServer, tmp_path: Path
) -> None:
    driver = start()
    wait_until(lambda: server.stats.texts > ROWS / 4 or driver.poll() is not None)
    workers_of(driver)[0].kill()
    assert_complete(driver, tmp_path / "out")
    assert ROWS <= server.stats.texts <= ROWS + CONCURRENCY * BATCH


def test_a_folder_of_text_files_is_cut_and_embedded(
    start: Start, server: LocalServer, tmp_path: Path
) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for number in range(5):
        paragraphs = [f"Paragraph {n} of note {number}. " + "Words. " * 60 for n in range(10)]
        (folder / f"{number}.md").write_text(f"# Note {number}\n\n" + "\n\n".join(paragraphs))
    process = start(folder)
    said, _ = process.communicate(timeout=800)
    assert process.returncode == 0, (tmp_path / "log").read_text()[-3_000:]
    table = pq.read_table(tmp_path / "out" / "parquet")
    assert table.num_rows == server.stats.texts >= 10
    assert f"{table.num_rows} in Chroma" in said
    assert {source.split(":")[0].rpartition("/")[2] for source in table["source"].to_pylist()} == {
        f"{number}.md" for number in range(5)
    }


def test_rows_of_one_text_are_one_record_and_a_second_run_adds_none(
    start: Start, server: LocalServer, tmp_path: Path
) -> None:
    texts = ["a text", "another", "a text", None]
    table = tmp_path / "no-ids.parquet"
    pq.write_table(pa.table({"body": texts}), table)
    for _ in range(2):
        process = start(table, "--text", "body")
        said, _ = process.communicate(timeout=800)
        assert process.returncode == 0, (tmp_path / "log").read_text()[-3_000:]
        assert "4 rows in" in said
        assert "2 in Chroma, 1 without a vector" in said
    written = pq.read_table(tmp_path / "out" / "parquet")
    assert sorted(map(str, written["text"].to_pylist())) == sorted(map(str, texts))
    assert server.stats.texts == 2


def test_equal_pieces_of_a_line_are_one_passage_and_files_that_are_not_utf_8_are_named(
    start: Start, tmp_path: Path
) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "long.txt").write_text("ab " * 1_600)
    (folder / "mark.md").write_text("A text after a byte order mark.", "utf-8-sig")
    (folder / "latin.txt").write_bytes("Am Samstag geöffnet.".encode("latin-1"))
    (folder / "wide.md").write_text("Sixteen bits.", "utf-16")
    process = start(folder)
    said, _ = process.communicate(timeout=800)
    log = (tmp_path / "log").read_text()
    assert process.returncode == 0, log[-3_000:]
    table = pq.read_table(tmp_path / "out" / "parquet")
    assert len(set(table["id"].to_pylist())) == table.num_rows
    assert f"{table.num_rows} in Chroma, 0 without a vector" in said
    read = {source.rpartition(":")[0] for source in table["source"].to_pylist()}
    assert read == {str(folder / "long.txt"), str(folder / "mark.md")}
    assert "A text after a byte order mark." in table["text"].to_pylist()
    assert f"left out: {folder / 'latin.txt'}: not UTF-8" in log
    assert f"left out: {folder / 'wide.md'}: UTF-16, not UTF-8" in log


def test_a_source_that_cannot_be_read_is_one_sentence_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("broken.parquet").write_text("PAR1")
    pq.write_table(pa.table({"id": [7, 7], "text": ["one", "two"]}), "ids.parquet")
    for arguments, reason in (
        (["/nope"], "there is no file or folder '/nope'"),
        (["empty"], "'empty' holds no .txt or .md file that is UTF-8"),
        (["broken.parquet"], "'broken.parquet' cannot be read"),
        (["ids.parquet"], "several rows of 'ids.parquet' have the same id"),
        (["ids.parquet", "--text", "body"], "the columns of 'ids.parquet' are id, text"),
    ):
        with pytest.raises(SystemExit) as ended:
            example().main(arguments)
        assert ended.value.code == 2
        assert f"error: {reason}" in capsys.readouterr().err.replace("--text body: ", "")
    assert not Path("ray-corpus").exists()


@pytest.mark.parametrize("address", ["chroma.example.org", "chroma.example.org:", ":8000", "a:b"])
def test_an_address_of_chroma_without_host_or_port_is_refused(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        example().main(["notes", "--chroma", address])
    assert ended.value.code == 2
    said = f"error: argument --chroma: {address!r} is not host:port, such as localhost:8000"
    assert said in capsys.readouterr().err


def test_the_local_server_takes_another_port_if_its_own_is_taken(
    server: LocalServer, capsys: pytest.CaptureFixture[str]
) -> None:
    port = int(server.base_url.rpartition(":")[2].partition("/")[0])
    with example().local_server(port) as other:
        assert other.base_url != server.base_url
    assert f"port {port} is taken" in capsys.readouterr().err


def example() -> Any:
    spec = importlib.util.spec_from_file_location("ray_corpus", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
