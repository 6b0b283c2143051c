"""The search and answer examples beat bounds that BM25 fails, and a second run pays nothing."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., dict[str, Any]]
RAG = ("rag_chroma", "rag_langchain", "rag_llama_index")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def drawn(path: str) -> bool:
    return Path(path).read_bytes().startswith(b"\x89PNG")


def test_semantic_search_beats_bm25_in_two_languages(run: Run) -> None:
    found = run("semantic_search", "--limit", 500)
    scores = found["scores"]
    assert scores["en", "BM25"]["nDCG@10"] < 0.6 < scores["en", "embeddings"]["nDCG@10"]
    assert scores["en", "BM25"]["R@10"] < 0.75 < scores["en", "embeddings"]["R@10"]
    assert scores["zh", "BM25"]["nDCG@10"] < 0.1
    assert scores["zh", "embeddings"]["nDCG@10"] > 0.5
    assert scores["en", "hybrid"]["nDCG@10"] > scores["en", "BM25"]["nDCG@10"]
    assert list(found["curves"]["en"]) == [2048, 1536, 1024, 768, 512, 256, 128, 64]
    assert found["curves"]["en"][64] < found["curves"]["en"][1024]
    assert found["same"] == pytest.approx(1, abs=1e-4)
    assert drawn("semantic_search.png")


def test_english_paragraphs_are_found_by_chinese_questions(
    run: Run, data: Callable[[str], Path]
) -> None:
    files = data("xquad.zh.json"), data("xquad.en.json")
    scores = run("semantic_search", "--limit", 40, "--data", *files)["scores"]
    assert scores["zh", "BM25"]["nDCG@10"] < 0.5 < 0.8 < scores["zh", "embeddings"]["nDCG@10"]


@pytest.mark.parametrize(
    "files", [["clinc150_data_full.json"], ["banking77_train.csv", "banking77_test.csv"]]
)
def test_sentences_of_one_intent_are_found(
    run: Run, data: Callable[[str], Path], files: list[str]
) -> None:
    paths = [data(name) for name in files]
    scores = run("semantic_search", "--limit", 200, "--data", *paths)["scores"]["en", "embeddings"]
    assert scores["P@10"] > 0.6


@pytest.mark.parametrize("name", RAG)
def test_rag_answers_and_the_second_run_pays_nothing(
    run: Run, name: str, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(name, "--port", port)
    assert first["tokens"] > 20_000
    assert "random.choice" in first["answer"]
    assert "[1] https://docs.python.org/3" in capsys.readouterr().out
    second = run(name, "--port", port)
    assert second == {"tokens": 0, "answer": first["answer"]}


@pytest.mark.parametrize("name", RAG)
def test_rag_reads_a_folder_of_the_users(run: Run, name: str, port: int, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "pandas.md").write_text("Red pandas sleep in trees.", "utf-8")
    (tmp_path / "own" / "trains.md").write_text("The night train leaves at nine.", "utf-8")
    found = run(name, "Where do the animals rest?", "--folder", tmp_path / "own", "--port", port)
    assert found["answer"].startswith("[1] Red pandas sleep in trees.")


@pytest.mark.parametrize("name", RAG)
def test_rag_says_that_there_is_no_such_folder(
    run: Run, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(name, "--folder", "no-such-folder")
    assert ended.value.code == 2
    assert "error: there is no file or folder 'no-such-folder'" in capsys.readouterr().err


@pytest.mark.parametrize("name", RAG)
def test_rag_says_that_the_port_is_taken(
    run: Run, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            run(name, "--folder", "topics", "--port", port)
    assert ended.value.code == 2
    said = f"error: port {port} of 127.0.0.1 is in use: choose another port, or 0 for a free one"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("rag_chroma", "openai"),
        ("rag_langchain", "langchain_openai"),
        ("rag_llama_index", "llama_index.llms.openai_like"),
    ],
)
def test_rag_has_an_answer_written_where_there_is_a_key(
    run: Run,
    name: str,
    needs: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip(needs)
    with chat_server() as server:
        monkeypatch.setenv("NEXUSFLOW_BASE_URL", server.base_url)
        monkeypatch.setenv("NEXUSFLOW_API_KEY", "sk-air-secret")
        run(name, "--folder", "topics")
    out = capsys.readouterr().out
    assert "Use `random.choice` [1]." in out
    assert "sk-air-secret" not in out
    asked = server.asked[0]
    assert "[1] " in str(asked["messages"])


def chat_server() -> Any:
    path = Path(__file__).parents[1] / "rag" / "chat_server.py"
    spec = importlib.util.spec_from_file_location("chat_server", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ChatServer()
