"""The examples of clustering, recommending and outliers reach scores that baselines miss.

Before they embed anything, they name an argument that is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., dict[str, Any]]
Data = Callable[[str], Path]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def drawn(path: str) -> bool:
    return Path(path).read_bytes().startswith(b"\x89PNG")


def test_outliers_among_docstrings_are_found(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    scores = run("anomaly_detection")
    assert scores["TF-IDF"]["AUROC"] < 0.9 < scores["embeddings"]["AUROC"]
    assert scores["TF-IDF"]["precision"][1] < 0.8 < scores["embeddings"]["precision"][1]
    out = capsys.readouterr().out
    assert "texts with the local model " in out.partition("\n")[0]
    shown, _, picture = out.partition("the ten farthest")[2].partition("\n\nwritten to ")
    assert picture == f"{Path('anomaly_detection.png').resolve()}\n"
    shown = shown.splitlines()[1:]
    assert len(shown) == 10
    assert sum(line.split()[1] == "x" for line in shown) >= 8
    assert drawn("anomaly_detection.png")


def test_questions_out_of_scope_are_found(run: Run, data: Data) -> None:
    scores = run("anomaly_detection", "--limit", 150, "--data", data("clinc150_data_full.json"))
    assert scores["TF-IDF"]["AUROC"] < 0.8 < 0.85 < scores["embeddings"]["AUROC"]


def test_docstrings_cluster_by_module_and_name_themselves(run: Run) -> None:
    scores = run("text_clustering")
    assert scores["TF-IDF"]["NMI"] < 0.55 < 0.65 < scores["embeddings"]["NMI"]
    assert scores["TF-IDF"]["ARI"] < 0.3 < 0.45 < scores["embeddings"]["ARI"]
    words = " ".join(scores["names"]).split()
    assert {"calendar", "url"} <= set(words)
    assert drawn("text_clustering.png")


@pytest.mark.parametrize("name", ["clinc150_data_full.json", "banking77_test.csv"])
def test_sentences_cluster_by_intent(run: Run, data: Data, name: str) -> None:
    scores = run("text_clustering", "--limit", 8, "--data", data(name))
    assert scores["embeddings"]["NMI"] > 0.75
    assert scores["embeddings"]["ARI"] > scores["TF-IDF"]["ARI"] + 0.15


def test_recommended_pages_are_those_that_pydoc_calls_related(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pydoc_data.topics")
    found = run("recommendation", "--limit", 2)
    ours, bm25 = found["scores"]["embeddings"], found["scores"]["BM25"]
    assert bm25["nDCG@10"] < ours["nDCG@10"]
    assert bm25["hit@10"] <= ours["hit@10"]
    for way in ("popularity", "random"):
        assert found["scores"][way]["nDCG@10"] < 0.3 < 0.45 < ours["nDCG@10"]
        assert found["scores"][way]["hit@10"] < 0.65 < 0.75 < ours["hit@10"]
    assert {"break", "continue", "for"} <= set(found["list"])
    assert "x break" in capsys.readouterr().out
    assert drawn("recommendation.png")


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("semantic_search", ["--data", "/nope"], "--data: /nope: No such file"),
        ("semantic_search", ["--data", "other.json"], "is not a data set that this example reads"),
        ("text_clustering", ["--data", "/nope"], "--data: /nope: No such file"),
        ("anomaly_detection", ["--data", "other.json"], "is not a data set that this example"),
        ("anomaly_detection", ["--out", "/nope/a.png"], "--out: there is no folder '/nope'"),
        ("recommendation", ["--reader", "nobody"], "--reader must be one of "),
    ],
)
def test_a_wrong_argument_is_one_sentence(
    run: Run, name: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("other.json").write_text("{}", "utf-8")
    with pytest.raises(SystemExit) as ended:
        run(name, *arguments)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert not captured.out
