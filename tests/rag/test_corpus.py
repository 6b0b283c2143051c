"""The texts of each corpus are chosen in a fixed order, and unreadable files are left out."""

from __future__ import annotations

import gzip
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from nexusflow_integrations.cli.rag import corpus
from nexusflow_integrations.cli.rag.corpus import CorpusError, Document, Skipped


def test_the_standard_library_gives_500_distinct_docstrings_in_a_fixed_order() -> None:
    first, second = corpus.stdlib(), corpus.stdlib()
    assert first == second
    assert len(first.documents) == 500
    assert len({item.text for item in first.documents}) == 500
    assert not first.complete
    assert first.title.startswith("500 docstrings of Python 3.")
    assert corpus.stdlib(1).title.startswith("1 docstring of Python 3.")
    assert corpus.topics(1).title.startswith("1 passage of Python 3.")


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


def test_names_that_a_module_imports_are_not_its_own() -> None:
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


def test_a_folder_gives_the_passages_of_its_text_files_with_their_first_lines(
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
        ("sub/a.md:7", "Pandas > Food\n\nBamboo."),
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
    assert found.skipped == (Skipped("latin.txt", "line 1 is not UTF-8"),)


def test_a_text_that_stands_twice_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Same.")
    (tmp_path / "b.txt").write_text("Same.")
    assert [item.source for item in corpus.folder(tmp_path).documents] == ["a.txt:1"]


def test_a_blank_file_has_no_passage(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n\n\t\n")
    (tmp_path / "invisible.txt").write_text("\u200b\n\n\ufeff\u2060\n", "utf-8")
    (tmp_path / "b.txt").write_text("Words.")
    assert len(corpus.folder(tmp_path).documents) == 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"%PDF-1.7\n", "not text: a PDF"),
        (gzip.compress(b"text", mtime=0), "not text: compressed with gzip"),
        (b"PAR1\x15\x04", "not text: Parquet"),
        (b"PK\x03\x04\x14", "not text: a ZIP archive, as DOCX, XLSX and EPUB are"),
        ("text".encode("utf-16"), "not text: UTF-16, not UTF-8"),
        (b"one\x00two", "not text: binary"),
        (b"line 1\nline 2\ncaf\xe9", "line 3 is not UTF-8"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_left_out(
    tmp_path: Path, data: bytes, reason: str
) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    (tmp_path / "b.txt").write_text("Words.")
    (left_out,) = corpus.folder(tmp_path).skipped
    assert left_out.reason == reason
    assert left_out.source == "a.txt"
    with pytest.raises(CorpusError, match=re.escape(f"a.txt' cannot be read: {reason}")):
        corpus.load(str(tmp_path / "a.txt"))


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="root may read all")
def test_a_folder_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "a.txt").write_text("Hidden.")
    (tmp_path / "b.txt").write_text("Words.")
    (tmp_path / "closed").chmod(0)
    try:
        found = corpus.folder(tmp_path)
    finally:
        (tmp_path / "closed").chmod(0o700)
    assert found.skipped == (Skipped("closed", "Permission denied"),)
    assert found.could_not_read("closed/a.txt")
    assert not found.could_not_read("closed2/a.txt")


def test_a_name_that_looks_like_a_line_number_is_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_bytes(b"Words.")
    (tmp_path / "b.md").write_bytes(b"Caf\xe9.")
    found = corpus.folder(tmp_path)
    assert [item.source for item in found.skipped] == ["b.md"]
    assert found.could_not_read("b.md")
    found = replace(found, skipped=(Skipped("v1:80", "Permission denied"),))
    assert found.could_not_read("v1:80/a.md")
    assert not found.could_not_read("v1/a.md")


def test_files_of_other_types_are_counted_by_their_suffix(tmp_path: Path) -> None:
    for name in ("a.txt", "1.png", "2.PNG", "3.zip", "LICENSE", ".hidden.png"):
        (tmp_path / name).write_text("Words.")
    found = corpus.folder(tmp_path)
    assert (
        found.others == ("4 files of other types skipped: 2 .png, 1 .zip, 1 without a suffix")
        or found.others == "4 files of other types skipped: 2 .png, 1 without a suffix, 1 .zip"
    )
    assert found.complete


def sources(folder: Path) -> list[str]:
    return [item.origin for item in corpus.folder(folder).documents]


def test_files_in_gitignore_and_node_modules_are_left_out(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    files = {
        ".gitignore": "build/\n*.txt\n!kept.txt\n",
        "docs/.gitignore": "secret.md\n",
        **dict.fromkeys(
            (
                *("a.md", "b.txt", "kept.txt", "build/c.md", "docs/d.md", "docs/secret.md"),
                *("node_modules/e.md", "docs/node_modules/f.md", "secret.md", "build/deep/h.txt"),
            ),
            "",
        ),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text or f"Words of {name}.")
    assert sources(tmp_path) == ["a.md", "docs/d.md", "kept.txt", "secret.md"]
    # From above, too; but not for a folder that was named itself.
    assert sources(tmp_path / "docs") == ["d.md"]
    assert sources(tmp_path / "build") == ["c.md", "deep/h.txt"]
    assert sources(tmp_path / "build" / "deep") == ["h.txt"]
    assert sources(tmp_path / "node_modules") == ["e.md"]
    others = corpus.folder(tmp_path).others
    assert others == "5 files or folders ignored (.gitignore, node_modules)"


def test_a_gitignore_above_the_repository_does_not_count(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*\n")
    (tmp_path / "repository" / ".git").mkdir(parents=True)
    (tmp_path / "repository" / "a.md").write_text("Words.")
    assert sources(tmp_path / "repository") == ["a.md"]


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
def test_a_link_that_leads_out_of_the_folder_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("Not yours.")
    (tmp_path / ".gitignore").write_text("*\n")  # of where the link leads
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("Words.")
    (folder / "inside.md").symlink_to(folder / "a.txt")
    (folder / "outside.txt").symlink_to(tmp_path / "secret.txt")
    found = corpus.folder(folder)
    assert [item.text for item in found.documents] == ["Words."]
    assert (found.skipped, found.others) == ((), "1 link that leads out of the folder skipped")
    (folder / "away").symlink_to(tmp_path.parent)
    (folder / "here").symlink_to(folder)
    assert sources(folder) == ["a.txt"]
    assert corpus.folder(folder).others == "2 links that lead out of the folder skipped"


def test_a_limit_that_cuts_something_off_is_known(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A\n\nOne.\n\n# B\n\nTwo.\n")
    assert not corpus.folder(tmp_path, 1).complete
    assert corpus.folder(tmp_path, 2).complete


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_named_pipe_is_left_out_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "a.txt").write_text("red pandas sleep in trees")
    found = corpus.load(str(tmp_path))
    assert found.skipped == (Skipped("pipe.txt", "not a regular file"),)


def test_the_reason_why_nothing_was_found_is_the_real_one(tmp_path: Path) -> None:
    for read in (corpus.load, corpus.whole):
        with pytest.raises(CorpusError, match=r"the path is empty: write \. for"):
            read("")
    with pytest.raises(CorpusError, match="there is no file or folder"):
        corpus.load(str(tmp_path / "gone"))
    with pytest.raises(CorpusError, match=r"holds no text: none of its files ends in \.adoc"):
        corpus.load(str(tmp_path))
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(CorpusError, match=r"; 1 file of other types skipped: 1 \.png"):
        corpus.load(str(tmp_path))
    (tmp_path / "a.txt").write_text("  \n")
    with pytest.raises(CorpusError, match="holds no text: it is empty or blank"):
        corpus.load(str(tmp_path))
    (tmp_path / "b.txt").write_bytes(b"\xff\xfeA\x00")
    with pytest.raises(CorpusError, match=r"can be read: b\.txt: not text: UTF-16, not UTF-8$"):
        corpus.load(str(tmp_path))


def test_a_document_belongs_to_its_file() -> None:
    assert Document("a", "x/y.md:12").origin == "x/y.md"
    assert Document("a", "random.shuffle").origin == "random.shuffle"


def test_the_suffix_says_how_headings_are_marked(tmp_path: Path) -> None:
    files = {
        "a.adoc": "= Zoo\n\nadoc",
        "b.mdx": "import Zoo from 'zoo'\n\n# Zoo\n\nmdx",
        "c.org": "* Zoo\norg",
        "d.rst": "Zoo\n===\n\nrst",
        "e.rst.txt": "Zoo\n===\n\nrst.txt",
        "f.py": "class Zoo:\n    pass",
        "g.txt": "# Zoo\n\ntxt",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    texts = [item.text for item in corpus.folder(tmp_path).documents]
    assert texts[:5] == [f"Zoo\n\n{kind}" for kind in ("adoc", "mdx", "org", "rst", "rst.txt")]
    assert texts[5:] == ["Zoo\n\nclass Zoo:\n    pass", "# Zoo\n\ntxt"]


def test_a_file_whose_name_is_not_utf8_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "good.md").write_text("Pandas climb.")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.md", "wb") as file:
        file.write(b"Otters swim.")
    found = corpus.folder(tmp_path)
    assert [item.source for item in found.documents] == ["good.md:1"]
    assert found.skipped == (Skipped(r"caf\xe9.md", "its name is not UTF-8"),)
    assert corpus.whole(str(tmp_path))[1] == found.skipped


def test_the_current_folder_is_shown_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zoo" / "cages").mkdir(parents=True)
    (tmp_path / "zoo" / "a.md").write_text("Pandas climb.")
    monkeypatch.chdir(tmp_path / "zoo" / "cages")
    assert corpus.folder(Path("..")).title == "1 passage of zoo"
    monkeypatch.chdir(tmp_path / "zoo")
    assert corpus.folder(Path()).title == "1 passage of zoo"


def test_a_folder_without_read_permission_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus.os, "access", lambda *_: False)  # root may read anything
    for load in (corpus.load, corpus.whole):
        with pytest.raises(CorpusError, match="cannot be read: permission denied"):
            load(str(tmp_path))


def test_a_folder_whose_path_is_not_utf8_is_refused_before_it_is_read(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    (folder / "a.md").write_text("Pandas climb.")
    for load in (corpus.load, corpus.whole):
        with pytest.raises(CorpusError, match="is not UTF-8"):
            load(str(folder))
