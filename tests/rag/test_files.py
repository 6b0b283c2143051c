"""Files of many types become passages. Real programs wrote the examples in ``files``.

pandoc 2.17 wrote the DOCX, HTML, AsciiDoc, Org and reStructuredText, nbformat the notebook, and
Chromium printed the PDF.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from nexusflow_integrations.cli.rag import converted, corpus
from nexusflow_integrations.cli.rag.corpus import CorpusError

FILES = Path(__file__).parent / "files"
OTTERS = {
    "zoo.adoc": "Zoo > Otters",
    "zoo.docx": "Zoo > Otters",
    "zoo.html": "Zoo > Otters",
    "zoo.ipynb": "Zoo > Otters",
    "zoo.org": "Zoo > Otters",
    "zoo.pdf": "",  # a PDF has no headings
    "zoo.rst": "Zoo > Otters",
}
CONVERTED = ("zoo.docx", "zoo.html", "zoo.ipynb", "zoo.pdf")


@pytest.mark.parametrize("name", OTTERS)
def test_a_file_of_a_real_program_is_read_with_its_headings(name: str) -> None:
    if name in CONVERTED:
        pytest.importorskip("markitdown")
    documents = corpus.load(str(FILES / name)).documents
    (found,) = [item for item in documents if "The otter eats fish." in item.text]
    assert found.text.startswith(OTTERS[name])
    assert found.origin == name
    # Lines of the converted text are not lines of the file.
    assert (found.source == name) == (name in CONVERTED)
    assert not any(word in item.text for item in documents for word in ("<p", "PROPERTIES", "{"))


def test_code_of_a_notebook_stays_code() -> None:
    pytest.importorskip("markitdown")
    first = corpus.load(str(FILES / "zoo.ipynb")).documents[0].text
    assert first.startswith("Zoo\n\nThe zoo opens at nine.")
    assert '```python\n# not a heading\nprint("bamboo")\n```' in first


def test_a_row_of_a_table_is_a_passage_with_its_columns_and_line(tmp_path: Path) -> None:
    (tmp_path / "zoo.csv").write_text('animal,food\npanda,"bamboo,\nmuch"\notter,\n,\n')
    (tmp_path / "zoo.tsv").write_text("animal\tfood\nfinch\tseeds\tred\n")
    assert [(item.source, item.text) for item in corpus.folder(tmp_path).documents] == [
        ("zoo.csv:3", "animal: panda\nfood: bamboo,\nmuch"),
        ("zoo.csv:4", "animal: otter"),
        ("zoo.tsv:2", "animal: finch\nfood: seeds\nred"),
    ]


def test_a_line_of_jsonl_is_a_passage_with_its_fields_if_the_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "faq.jsonl"
    file.write_text('{"question": "Who eats?", "id": 0, "answer": "Otters."}\n\n"A string."\n')
    assert [(item.source, item.text) for item in corpus.folder(file).documents] == [
        ("faq.jsonl:1", "question: Who eats?\nid: 0\nanswer: Otters."),
        ("faq.jsonl:3", "A string."),
    ]
    (tmp_path / "zoo.json").write_text("[]")
    (tmp_path / "b.txt").write_text("Words.")
    for suffix in "abcdefg":
        (tmp_path / f"1.{suffix}").write_text("")
        (tmp_path / f"2.{suffix}").write_text("")
    found = corpus.folder(tmp_path)
    assert [item.source for item in found.documents] == ["b.txt:1"]
    assert ", 1 .jsonl, 1 .json, 4 more" in found.others


_VECTOR = [0.5] * 64


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"q": "How?", "a": ["Hold it.", 2, None, True]}, "q: How?\na: Hold it., 2, true"),
        ({"messages": [{"role": "user", "content": "grüß\ndich"}]},
         'messages: [{"role":"user","content":"grüß\\ndich"}]'),
        ({"a": {"b": [1.5, None], "c": None}, "ok": False}, 'a: {"b":[1.5]}\nok: false'),
        ({"text": "one", "embedding": _VECTOR, "all": [{"embedding": _VECTOR}]}, "text: one"),
        ({"short": [1, 2.5]}, "short: 1, 2.5"),
    ],
)  # fmt: skip
def test_a_row_of_json_holds_all_its_text(
    tmp_path: Path, row: dict[str, object], text: str
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (tmp_path / "a.json").write_text(json.dumps(["First.", row], indent=1))
    for name, sources in (("a.jsonl", ["a.jsonl:1"]), ("a.json", ["a.json:1", "a.json:2"])):
        found = corpus.folder(tmp_path / name)
        assert [item.source for item in found.documents] == sources
        assert found.documents[-1].text == text
        assert found.skipped == ()


def test_a_row_of_json_without_text_is_named(tmp_path: Path) -> None:
    empty = [{}, "", {"a": None, "b": [" "]}, {"embedding": _VECTOR}]
    rows = ["One.", *empty, {"n": 0}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    for name in ("a.jsonl", "a.json"):
        found = corpus.folder(tmp_path / name)
        assert [item.text for item in found.documents] == ["One.", "n: 0"]
        assert [str(item) for item in found.skipped] == [
            f"{name}:{number}: has no text" for number in (2, 3, 4, 5)
        ]
        assert not found.could_not_read(name), "the passages of the other rows are replaced"


def test_tune_reads_the_rows_that_index_stores(tmp_path: Path) -> None:
    (tmp_path / "zoo.csv").write_text("animal,food\npanda,bamboo\notter,fish\n")
    (tmp_path / "a.jsonl").write_text('{"q": "Who?", "a": ["A.", "B."]}\n{}\n')
    (tmp_path / "a.json").write_text('[{"q": "Who?"}]')
    for path in (tmp_path, tmp_path / "a.jsonl", tmp_path / "a.json"):
        texts, skipped = corpus.whole(str(path))
        found = corpus.folder(path)
        assert texts == [(item.source, item.text) for item in found.documents]
        assert skipped == found.skipped
    assert corpus.kind_of("zoo.csv:2") == corpus.kind_of("zoo.csv") != corpus.kind_of("zoo")


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.jsonl", '"one"\ntwo\n', "line 2 is not JSON"),
        ("a.jsonl", '["one"]\n', "line 1 is neither a JSON object nor a string"),
        ("a.jsonl", '"\\ud800"\n', "line 1 is not UTF-8"),
        ("a.jsonl", f"{'[' * 200_000}", "line 1 is n"),
        ("a.jsonl", "{}", "cannot be read: has no text"),
        ("a.json", '{"text": "one"}', "JSON, but not an array of objects or strings"),
        (
            "a.json",
            '"one"\n"two"\n',
            r"not JSON \(line 2\); for one object per line, name it .jsonl",
        ),
        ("a.json", '["one", 2]', "item 2 is neither a JSON object nor a string"),
    ],
)
def test_json_of_another_form_is_refused(tmp_path: Path, name: str, data: str, reason: str) -> None:
    (tmp_path / name).write_text(data)
    with pytest.raises(corpus.CorpusError, match=reason):
        corpus.folder(tmp_path / name)


def test_a_field_of_a_table_may_be_of_any_length(tmp_path: Path) -> None:
    (tmp_path / "zoo.csv").write_text(f"animal,text\npanda,{'bamboo ' * 30_000}\notter,fish\n")
    found = corpus.folder(tmp_path)
    assert found.skipped == ()
    assert found.documents[-1].text == "animal: otter\ntext: fish"


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.pdf", b"plain text", "not a PDF"),
        ("a.docx", b"plain text", "not a DOCX file"),
        ("a.html", b"<p>\ncaf\xe9", "line 2 is not UTF-8"),
        ("a.docx", b"PK\x03\x04broken", "cannot be read as .docx: "),
        ("a.ipynb", b"{}}", "cannot be read as .ipynb: "),
        ("a.csv", b'one\n"two', "not a table: line 2: "),
        ("a.csv", b'"one' + b"\n" * 200_000, "not a table: lines 1 to 200000: "),
    ],
)
def test_a_file_that_cannot_be_converted_is_named_and_the_others_are_read(
    tmp_path: Path, name: str, data: bytes, reason: str
) -> None:
    if not name.endswith("csv"):
        pytest.importorskip("markitdown")
    (tmp_path / name).write_bytes(data)
    (tmp_path / "b.txt").write_text("Words.")
    found = corpus.folder(tmp_path)
    assert [item.text for item in found.documents] == ["Words."]
    (left_out,) = found.skipped
    assert left_out.source == name
    assert left_out.reason.startswith(reason)


def test_a_page_without_text_logs_no_warning_of_the_parser(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("markitdown")
    (tmp_path / "a.html").write_bytes(b"")
    (tmp_path / "b.txt").write_text("Words.")
    assert [item.text for item in corpus.folder(tmp_path).documents] == ["Words."]
    assert caplog.records == []


def test_a_first_line_of_excel_names_the_separator(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sep=;\r\nname;food\r\npanda;bamboo, much\r\n")
    (tmp_path / "b.csv").write_text('"sep=^"^^\nname^food\notter^fish\n')
    assert [(item.source, item.text) for item in corpus.folder(tmp_path).documents] == [
        ("a.csv:3", "name: panda\nfood: bamboo, much"),
        ("b.csv:3", "name: otter\nfood: fish"),
    ]


@pytest.mark.filterwarnings("error")
def test_a_deeply_nested_page_is_read_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("markitdown")
    (tmp_path / "a.html").write_text("<div>" * 20_000 + "<p>The fox eats berries.</p>")
    (document,) = corpus.folder(tmp_path).documents
    assert document.text == "The fox eats berries."


def test_without_the_extra_the_files_are_counted_and_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "markitdown", None)
    monkeypatch.setattr(corpus, "can_convert", lambda: False)
    shutil.copy(FILES / "zoo.pdf", tmp_path)
    (tmp_path / "b.txt").write_text("Words.")
    found = corpus.folder(tmp_path)
    hint = '(for .pdf: pip install "nexusflow-integrations[files]")'
    assert found.others == f"1 file of other types skipped: 1 .pdf {hint}"
    assert found.skipped == ()
    with pytest.raises(ImportError, match=r"markitdown: pip install .nexusflow-integrations\[file"):
        corpus.load(str(tmp_path / "zoo.pdf"))


def test_a_pdf_without_text_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converters = pytest.importorskip("markitdown.converters")

    class Empty:
        markdown = " \n"

    monkeypatch.setattr(converters.PdfConverter, "convert", lambda *_: Empty())
    with pytest.raises(CorpusError, match="a PDF without text, such as a scan"):
        corpus.load(str(FILES / "zoo.pdf"))


def test_a_table_is_read_only_as_far_as_its_rows_are_taken() -> None:
    for line in ("1;2\n", "1,2\n"):
        source = iter(["a;b\n", *[line] * 1_000])
        read = converted.read_table(source, ",")
        assert [next(read)[0], next(read)[0]] == [1, 2]
        assert len(list(source)) >= 998


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "|")])
@pytest.mark.parametrize("quote", ["", '"'])
def test_the_columns_of_a_table_may_have_other_separators(
    tmp_path: Path, name: str, separator: str, quote: str
) -> None:
    rows = [["name", "text"], ["1,5\t2", "Hello, world; or\nnot"], ["Ann", ""]]
    if not quote:
        rows[1] = ["1,5", '"Hello, world; or\nnot"']
    lines = [separator.join(f"{quote}{cell}{quote}" for cell in row) + "\n" for row in rows]
    (tmp_path / name).write_text("".join(lines))
    (tmp_path / "b.csv").write_text("notes; see below\nA note.\nAnother; longer.\n")
    (tmp_path / "c.csv").write_text("only; a header\n")
    found = corpus.load(str(tmp_path))
    first = "1,5\t2" if quote else "1,5"
    assert [(passage.source, passage.text) for passage in found.documents] == [
        (f"{name}:3", f"name: {first}\ntext: Hello, world; or\nnot"),
        (f"{name}:4", "name: Ann"),
        ("b.csv:2", "notes; see below: A note."),
        ("b.csv:3", "notes; see below: Another; longer."),
    ]
