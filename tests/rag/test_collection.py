"""Passage ids are stable: a moved passage costs nothing, and no passage takes another's id."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusflow_integrations.cli.rag import collection
from nexusflow_integrations.cli.rag.collection import (
    DamagedError,
    chroma_client,
    open_to_read,
    plan,
    stored,
)
from nexusflow_integrations.cli.rag.corpus import Corpus, Document, Skipped, folder
from nexusflow_integrations.cli.rag.keywords import Keywords
from nexusflow_integrations.cli.rag.pipeline import COLLECTION
from nexusflow_integrations.local import LocalServer

from .conftest import DOCUMENTS

Stored = dict[str, Document]


def corpus(*documents: tuple[str, str], **more: object) -> Corpus:
    held = tuple(Document(text, source) for text, source in documents)
    return Corpus("zoo", "zoo", held, **more)  # type: ignore[arg-type]


def carry_out(before: Stored, texts: Corpus) -> Stored:
    wanted = plan(texts, before)
    after = {} if wanted.remove else dict(before)
    return after | dict(zip(wanted.ids, wanted.documents, strict=True))


def counts(before: Stored, texts: Corpus) -> tuple[int, int, int, int]:
    found = plan(texts, before).counts()
    return found.added, found.changed, found.unchanged, found.removed


BEFORE = carry_out(
    {}, corpus(("one", "a.md:1"), ("two", "a.md:3"), ("three", "b.md:1"), ("four", "c.md:1"))
)


def test_the_same_corpus_changes_nothing() -> None:
    same = corpus(("one", "a.md:1"), ("two", "a.md:3"), ("three", "b.md:1"), ("four", "c.md:1"))
    assert counts(BEFORE, same) == (0, 0, 4, 0)
    assert plan(same, BEFORE).new() == []


def test_a_passage_that_moved_inside_its_file_is_not_embedded_again() -> None:
    moved = corpus(
        ("zero", "a.md:1"),
        ("one", "a.md:3"),
        ("two", "a.md:5"),
        ("three", "b.md:1"),
        ("four", "c.md:1"),
    )
    assert counts(BEFORE, moved) == (1, 2, 2, 0)
    assert plan(moved, BEFORE).new() == ["zero"]


def test_a_new_and_a_removed_passage_of_one_file_count_as_one_changed() -> None:
    changed = corpus(("one", "a.md:1"), ("TWO", "a.md:3"), ("three", "b.md:1"), ("new", "d.md:1"))
    assert counts(BEFORE, changed) == (1, 1, 2, 1)
    after = carry_out(BEFORE, changed)
    assert sorted(item.text for item in after.values()) == ["TWO", "new", "one", "three"]


def test_passages_beyond_a_limit_are_neither_removed_nor_replaced() -> None:
    cut = corpus(("ONE", "a.md:1"), complete=False)
    assert counts(BEFORE, cut) == (1, 0, 0, 0)
    assert set(carry_out(BEFORE, cut)) > set(BEFORE)
    whole_file = corpus(("ONE", "a.md:1"), ("two", "a.md:3"), ("3", "b.md:1"), complete=False)
    assert counts(BEFORE, whole_file) == (2, 0, 1, 0)


def test_a_file_that_cannot_be_read_keeps_its_passages() -> None:
    rest = corpus(("three", "b.md:1"), skipped=(Skipped("a.md", "line 7 is not UTF-8"),))
    assert counts(BEFORE, rest) == (0, 0, 3, 1)
    assert {item.text for item in carry_out(BEFORE, rest).values()} == {"one", "two", "three"}


def test_a_passage_whose_file_was_renamed_is_not_embedded_again() -> None:
    renamed = corpus(("one", "z.md:1"), ("two", "z.md:3"), ("three", "b.md:1"), ("four", "c.md:1"))
    assert plan(renamed, BEFORE).new() == []
    assert counts(BEFORE, renamed) == (0, 2, 2, 0)


def test_a_passage_of_two_files_is_stored_once_while_the_first_cannot_be_read() -> None:
    rest = corpus(("one", "b.md:1"), skipped=(Skipped("a.md", "not UTF-8"),))
    before = {"id": Document("one", "a.md:1", also_in=("b.md",))}
    assert counts(before, rest) == (0, 1, 0, 0)
    assert carry_out(before, rest) == {"id": Document("one", "b.md:1", also_in=("a.md",))}


def test_passages_that_an_older_version_stored_twice_become_one() -> None:
    twice = {"id": Document("one", "a.md:1"), "id2": Document("one", "b.md:1")}
    rest = corpus(("one", "b.md:1"), skipped=(Skipped("a.md", "not UTF-8"),))
    assert carry_out(twice, rest) == {"id2": Document("one", "b.md:1", also_in=("a.md",))}


def test_a_folder_that_cannot_be_read_keeps_its_passages() -> None:
    before = carry_out({}, corpus(("one", "x/a.md:1"), ("two", "y/b.md:1"), ("three", "c.md:1")))
    rest = corpus(("three", "c.md:1"), skipped=(Skipped("x", "Permission denied"),))
    assert {item.text for item in carry_out(before, rest).values()} == {"one", "three"}


def test_a_passage_that_was_read_is_not_kept_a_second_time() -> None:
    rest = corpus(("one", "a.md:1"), ("three", "b.md:1"), skipped=(Skipped("a.md", "broken"),))
    assert counts(BEFORE, rest) == (0, 0, 3, 1)


def test_a_rebuilt_index_keeps_them_too() -> None:
    rest = corpus(("three", "b.md:1"), skipped=(Skipped("a.md", "line 7 is not UTF-8"),))
    wanted = plan(rest, {}, BEFORE)
    assert {item.text for item in wanted.documents} == {"one", "two", "three"}


SHARED = {"id": Document("one", "a.md:1", "file:///a.md", also_in=("b.md", "c.md"))}
UNREAD = (Skipped("b.md", "line 7 is not UTF-8"),)


def test_a_passage_of_two_files_stays_if_one_is_deleted_and_one_cannot_be_read() -> None:
    rest = corpus(("two", "d.md:1"), skipped=UNREAD)
    assert counts(SHARED, rest) == (1, 1, 0, 0)
    assert carry_out(SHARED, rest)["id"] == Document("one", "b.md")
    assert plan(rest, SHARED).new() == ["two"]
    assert plan(rest, {}, SHARED).documents[1:] == (Document("one", "b.md"),)


def test_a_passage_of_two_files_is_removed_if_the_files_were_read_without_it() -> None:
    rest = corpus(("two", "d.md:1"), skipped=(Skipped("d2.md", "not UTF-8"),))
    assert counts(SHARED, rest) == (1, 0, 0, 1)


def test_a_file_that_could_not_be_read_stays_known_as_a_place_of_the_passage() -> None:
    rest = Corpus("zoo", "zoo", (Document("one", "a.md:1", "file:///a.md"),), skipped=UNREAD)
    assert carry_out(SHARED, rest) == {
        "id": Document("one", "a.md:1", "file:///a.md", also_in=("b.md",))
    }
    gone = corpus(("two", "d.md:1"), passed_by=(Skipped("b.md", "a link"),))
    assert carry_out(carry_out(SHARED, rest), gone)["id"] == Document("one", "b.md")


def test_a_limit_changes_nothing_of_a_passage_of_two_files() -> None:
    for cut in (
        corpus(("two", "d.md:1"), complete=False, skipped=UNREAD),
        Corpus("zoo", "zoo", (Document("one", "a.md:1", "file:///a.md"),), complete=False),
    ):
        assert carry_out(SHARED, cut)["id"] == SHARED["id"]


def test_a_file_that_contains_a_passage_second_is_named_if_it_cannot_be_read() -> None:
    rest = corpus(("two", "d.md:1"), passed_by=(Skipped("b.md", "a link"), Skipped("e.md", "-")))
    assert plan(rest, SHARED).left_out == (Skipped("b.md", "a link"),)


def test_a_text_that_comes_back_gets_an_id_of_its_own() -> None:
    changed = carry_out({}, corpus(("one", "a.md:1")))
    changed = carry_out(changed, corpus(("two", "a.md:1")))
    both = corpus(("two", "a.md:1"), ("one", "a.md:3"))
    assert len(carry_out(changed, both)) == 2


FILES = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["a.md", "b.md", "c.md"])),
    unique_by=lambda item: item[0],
    max_size=8,
)


def numbered(rows: list[tuple[str, str]]) -> Corpus:
    return corpus(*((text, f"{file}:{line}") for line, (text, file) in enumerate(rows, 1)))


@given(old=FILES, new=FILES)
def test_after_any_change_the_collection_holds_the_corpus_and_pays_for_nothing_twice(
    old: list[tuple[str, str]], new: list[tuple[str, str]]
) -> None:
    before = carry_out({}, numbered(old))
    wanted = plan(numbered(new), before)
    assert len(set(wanted.ids)) == len(new)
    after = carry_out(before, numbered(new))
    assert {(item.text, item.origin) for item in after.values()} == set(new)
    assert set(wanted.new()) == {text for text, _ in new} - {text for text, _ in old}


@given(old=FILES, new=FILES, stop=st.integers(0, 8))
def test_wherever_a_sync_stops_all_old_texts_and_all_written_ones_are_there(
    old: list[tuple[str, str]], new: list[tuple[str, str]], stop: int
) -> None:
    before = carry_out({}, numbered(old))
    wanted = plan(numbered(new), before)
    half = before | dict(list(zip(wanted.ids, wanted.documents, strict=True))[:stop])
    written = {text for text, _ in list(new)[:stop]}
    assert {text for text, _ in old} | written <= {item.text for item in half.values()}


UNREADABLE = "\xff"
RUNS = st.lists(
    st.dictionaries(
        st.sampled_from(["a.md", "b.md", "c.md"]),
        st.one_of(st.just(UNREADABLE), st.sets(st.sampled_from(["one", "two", "three"]))),
    ),
    min_size=2,
    max_size=5,
)


@given(runs=RUNS, stops=st.lists(st.integers(0, 4), min_size=5, max_size=5))
def test_wherever_runs_stop_a_file_that_cannot_be_read_keeps_what_was_stored_of_it(
    runs: list[dict[str, str | set[str]]], stops: list[int]
) -> None:
    index: Stored = {}
    with TemporaryDirectory() as place:
        for files, stop in zip(runs, stops, strict=False):
            found = corpus_of(Path(place), files)
            wanted = plan(found, index)
            pairs = list(zip(wanted.ids, wanted.documents, strict=True))
            after = dict(pairs) if stop >= len(pairs) else index | dict(pairs[:stop])
            for name, texts in files.items():
                if isinstance(texts, str):
                    assert texts_of(index, name) <= texts_of(after, name)
            assert len({item.text for item in after.values()}) == len(after)
            index = after


def texts_of(index: Stored, name: str) -> set[str]:
    return {item.text for item in index.values() if name in item.origins}


def corpus_of(place: Path, files: dict[str, str | set[str]]) -> Corpus:
    for name in ("a.md", "b.md", "c.md"):
        (place / name).unlink(missing_ok=True)
    for name, texts in files.items():
        data = b"\xff" if isinstance(texts, str) else "\n\n# ".join(["", *texts]).encode()
        (place / name).write_bytes(data)
    (place / "z.md").write_text("# end")  # an empty folder is an error
    return folder(place)


@given(runs=RUNS)
def test_in_any_order_of_faults_each_file_keeps_what_was_last_read_of_it(
    runs: list[dict[str, str | set[str]]],
) -> None:
    index: Stored = {}
    last_read: dict[str, set[str]] = {}
    with TemporaryDirectory() as place:
        for files in runs:
            index = carry_out(index, corpus_of(Path(place), files))
            files = {"z.md": {"end"}, **files}
            last_read = {
                name: last_read.get(name, set()) if isinstance(texts, str) else texts
                for name, texts in files.items()
            }
            kept = {(name, text) for name, texts in last_read.items() for text in texts}
            held = {(name, item.text) for item in index.values() for name in item.origins}
            assert held == kept


# -- on the disk ---------------------------------------------------------------------------------


def test_exactly_the_text_is_embedded_ten_a_request(
    fill: Callable[..., Path], server: LocalServer
) -> None:
    fill()
    assert sorted(server.stats.received) == sorted(item.text for item in DOCUMENTS)
    assert server.stats.requests == 3  # 24 texts


def test_stored_documents_are_read_back(fill: Callable[..., Path], server: LocalServer) -> None:
    held = stored(open_to_read(fill()))
    assert sorted(held.values(), key=str) == sorted(DOCUMENTS, key=str)


def test_all_files_of_a_passage_are_read_back(fill: Callable[..., Path]) -> None:
    shared = Document("a shared passage", "a.md:1", "file:///a.md", also_in=("b.md", "c\n.md"))
    held = stored(open_to_read(fill((*DOCUMENTS, shared))))
    assert shared in held.values()


def test_a_file_that_is_not_a_database_is_reported_as_damaged(tmp_path: Path) -> None:
    (tmp_path / "chroma.sqlite3").write_bytes(b"no database at all" * 100)
    with pytest.raises(DamagedError):
        open_to_read(tmp_path)


def test_an_index_is_read_page_by_page(
    fill: Callable[..., Path], server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection, "_PAGE", 7)
    assert len(stored(open_to_read(fill()))) == len(DOCUMENTS)


@pytest.mark.slow
def test_more_passages_than_sqlite_takes_variables_can_be_read_and_searched(
    tmp_path: Path,
) -> None:
    chroma = chroma_client(tmp_path)
    made = chroma.create_collection(COLLECTION, embedding_function=None)
    for start in range(0, 33_000, 3_000):
        numbers = range(start, start + 3_000)
        made.add(
            ids=[f"{n}" for n in numbers],
            documents=[f"Animal number {n}." for n in numbers],
            metadatas=[{"source": f"a.md:{n}", "url": ""} for n in numbers],
            embeddings=[[1.0, float(n)] for n in numbers],
        )
    held = stored(open_to_read(tmp_path))
    assert len(held) == 33_000
    found = Keywords([*held.values()]).search("animal 32999", 1)
    assert found[0].source == "a.md:32999"
