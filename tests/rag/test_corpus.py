"""What is searched is chosen by lists, the same every time, and read with care."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from nexusflow_integrations.cli.rag import corpus
from nexusflow_integrations.cli.rag.corpus import CorpusError, Document


def test_the_standard_library_gives_500_distinct_docstrings_in_a_fixed_order() -> None:
    first, second = corpus.stdlib(), corpus.stdlib()
    assert first == second
    assert len(first.documents) == 500
    assert len({item.id for item in first.documents}) == 500
    assert first.title.startswith("500 docstrings of Python 3.")


def test_a_docstring_is_named_and_begins_with_what_it_does() -> None:
    held = {item.source: item for item in corpus.stdlib().documents}
    shuffle = held["random.shuffle"]
    assert shuffle.text.startswith("random.shuffle: Shuffle list x in place, and return None.")
    assert shuffle.url.endswith("/library/random.html#random.shuffle")
    # The C function's signature line is left out, and so are doctests.
    assert held["max"].text.startswith("max: With a single iterable argument, return")
    assert not any(">>>" in item.text for item in held.values())
    assert max(len(item.text) for item in held.values()) < 460


def test_exceptions_and_private_names_are_left_out() -> None:
    sources = [item.source for item in corpus.stdlib(None).documents]
    assert "ValueError" not in sources
    assert not any(source.rpartition(".")[2].startswith("_") for source in sources)


def test_a_larger_limit_brings_further_modules_behind_the_same_front() -> None:
    small, large = corpus.stdlib(100), corpus.stdlib(None)
    assert small.documents == large.documents[:100]
    assert len(large.documents) > 1000


def test_the_everyday_modules_fit_into_the_default_limit() -> None:
    sources = {item.source.rpartition(".")[0] for item in corpus.stdlib().documents}
    assert set(corpus.EVERYDAY) - {"builtins", "string"} <= sources


def test_a_module_that_this_python_lacks_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = corpus.stdlib()
    monkeypatch.setitem(sys.modules, "heapq", None)
    without = corpus.stdlib()
    assert any(item.source == "heapq.nlargest" for item in whole.documents)
    assert not any(item.source.startswith("heapq.") for item in without.documents)


def test_what_a_module_imports_is_not_its_own() -> None:
    module = ModuleType("zoo")
    module.sleep = __import__("time").sleep  # type: ignore[attr-defined]

    def panda() -> None:
        """Eat bamboo all day long."""

    panda.__module__ = "zoo"
    module.panda = panda  # type: ignore[attr-defined]
    assert corpus._public_names(module) == ["panda"]


def test_topics_are_cut_into_passages_that_name_their_topic() -> None:
    topics = corpus.topics()
    assert len(topics.documents) > 300
    assert max(len(item.text) for item in topics.documents) <= 800
    assert "help('with')" in {item.source for item in topics.documents}
    assert topics == corpus.topics()
    assert corpus.topics(7).documents == topics.documents[:7]


def test_a_folder_gives_its_text_files_with_the_line_each_passage_begins_at(
    tmp_path: Path,
) -> None:
    (tmp_path / "b.txt").write_text("The end.")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.md").write_text(
        "# Pandas\n\nThey climb.\n\n## Food\n\nBamboo.\n", "utf-8"
    )
    (tmp_path / ".hidden.md").write_text("no")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.md").write_text("no")
    (tmp_path / "data.bin").write_bytes(b"\0\1")
    found = corpus.folder(tmp_path)
    assert [(item.source, item.text) for item in found.documents] == [
        ("b.txt:1", "The end."),
        ("sub/a.md:3", "Pandas\n\nThey climb."),
        ("sub/a.md:7", "Food\n\nBamboo."),
    ]
    assert found.documents[0].url == (tmp_path / "b.txt").resolve().as_uri()


def test_one_file_is_a_corpus_whatever_its_suffix(tmp_path: Path) -> None:
    file = tmp_path / "notes.log"
    file.write_text("It rained.")
    assert corpus.load(str(file)).documents[0].source == "notes.log:1"


def test_a_file_that_is_not_utf8_is_skipped_and_named(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "good.txt").write_bytes(b"\xef\xbb\xbfcoffee")
    found = corpus.folder(tmp_path)
    assert [item.text for item in found.documents] == ["coffee"]
    assert found.skipped == ("latin.txt: not UTF-8",)


def test_a_text_that_stands_twice_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Same.")
    (tmp_path / "b.txt").write_text("Same.")
    assert [item.source for item in corpus.folder(tmp_path).documents] == ["a.txt:1"]


def test_a_blank_file_has_no_passage(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n\n\t\n")
    (tmp_path / "b.txt").write_text("Words.")
    assert len(corpus.folder(tmp_path).documents) == 1


def test_nothing_to_search_is_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="there is no file or folder"):
        corpus.load(str(tmp_path / "gone"))
    with pytest.raises(CorpusError, match=r"holds no text to search \(files read: \.markdown"):
        corpus.load(str(tmp_path))


def test_a_document_id_changes_with_source_and_with_text() -> None:
    ids = {Document("a", "x").id, Document("a", "y").id, Document("b", "x").id}
    assert len(ids) == 3
    assert Document("a", "x", "url").id == Document("a", "x").id
