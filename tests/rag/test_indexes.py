"""An index is found by its name, and never used with another model."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from nexusflow_integrations._core.secret import ApiKey
from nexusflow_integrations.cli.rag.endpoint import Endpoint, open_endpoint
from nexusflow_integrations.cli.rag.indexes import About, Index, Indexes, UnusableIndexError
from nexusflow_integrations.cli.rag.session import is_of_this_endpoint, reopened
from nexusflow_integrations.errors import ConfigurationError

SERVICE = Endpoint("https://nexusflow.vip/v1", ApiKey("sk-air-secret"))


def about(**changes: object) -> About:
    told = {
        "corpus": "stdlib",
        "title": "500 docstrings",
        "frameworks": ("chroma",),
        "endpoint": "nexusflow.vip",
        "local_model": None,
        "base_url": "https://nexusflow.vip/v1",
        "dimensions": None,
        "documents": 500,
        "folder": "chroma-1",
    }
    return About(**{**told, **changes})  # type: ignore[arg-type]


@pytest.fixture
def indexes(tmp_path: Path) -> Indexes:
    return Indexes(tmp_path)


def stand(indexes: Indexes, name: str, used: int, **changes: object) -> Index:
    index = Index(indexes.folder / name)
    (index.directory / "chroma-1").mkdir(parents=True, exist_ok=True)
    index.describe(about(**changes))
    os.utime(index.directory / "index.json", (used, used))
    return index


def test_models_sizes_and_hosts_have_indexes_of_their_own(indexes: Indexes) -> None:
    endpoints = [
        SERVICE,
        Endpoint(SERVICE.base_url, ApiKey("k"), 512),
        Endpoint("https://proxy.example/v1", ApiKey("k")),
        Endpoint("http://127.0.0.1:1/v1", ApiKey("k"), None, "minilm-use-gated"),
        Endpoint("http://127.0.0.1:1/v1", ApiKey("k"), None, "hash"),
    ]
    names = [indexes.place("stdlib", "stdlib", item).name for item in endpoints]
    assert names == [
        "stdlib@nexusflow.vip",
        "stdlib@nexusflow.vip-512",
        "stdlib@proxy.example",
        "stdlib@minilm-use-gated",
        "stdlib@hash",
    ]


def test_the_port_of_the_embedded_server_does_not_matter(indexes: Indexes) -> None:
    one, two = (
        indexes.place(
            "stdlib", "stdlib", Endpoint(f"http://127.0.0.1:{port}/v1", ApiKey("k"), None, "use")
        )
        for port in (1, 2)
    )
    assert one == two


def test_folders_of_one_name_have_indexes_of_their_own(indexes: Indexes, tmp_path: Path) -> None:
    one, two = (
        indexes.place(str(tmp_path / parent / "docs"), "docs", SERVICE).name for parent in "ab"
    )
    assert one != two
    assert one.startswith("docs-")


def test_a_folder_with_a_name_of_any_length_has_an_index(indexes: Indexes, tmp_path: Path) -> None:
    for name in ("n" * 250, "熊" * 83):
        index = indexes.place(str(tmp_path / name), name, SERVICE)
        assert stand(indexes, index.name, 1_000).described() is not None
        assert index == indexes.place(str(tmp_path / name), name, SERVICE)
    assert len(indexes.all()) == 2


def test_the_size_is_known_while_files_come_and_go(indexes: Indexes) -> None:
    index = stand(indexes, "docs@x", 1_000)
    (index.directory / "chroma-1" / "kept").write_bytes(b"x" * 1_000)
    done = threading.Event()

    def come_and_go() -> None:
        folder = index.directory / "chroma-1" / "segment"
        while not done.is_set():
            folder.mkdir()
            for name in range(20):
                (folder / str(name)).touch()
            shutil.rmtree(folder)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        assert all(index.size > 1_000 for _ in range(500))
    finally:
        done.set()
        thread.join()


def test_the_latest_is_found_first_and_use_makes_it_the_latest(indexes: Indexes) -> None:
    stand(indexes, "old@x", 1_000)
    stand(indexes, "new@x", 2_000)
    assert indexes.find().name == "new@x"
    indexes.find("old").touch()
    assert indexes.find().name == "old@x"


def test_a_name_may_be_shortened_as_long_as_it_is_one(indexes: Indexes) -> None:
    stand(indexes, "docs-aaa@x", 1)
    stand(indexes, "docs-bbb@x", 2)
    stand(indexes, "docs", 3)
    assert indexes.find("docs-a").name == "docs-aaa@x"
    assert indexes.find("docs").name == "docs"
    with pytest.raises(UnusableIndexError, match="the names of several indexes begin with 'docs-'"):
        indexes.find("docs-")
    with pytest.raises(UnusableIndexError, match="there is no index named 'x'; the indexes are: "):
        indexes.find("x")


def test_without_an_index_the_message_says_how_to_make_one(indexes: Indexes) -> None:
    with pytest.raises(UnusableIndexError, match="nexusflow index FOLDER"):
        indexes.find()


def test_a_description_can_be_saved_and_loaded_and_a_damaged_one_is_reported(
    indexes: Indexes,
) -> None:
    index = stand(indexes, "a@x", 1)
    assert index.about() == about()
    assert not list(index.directory.glob("index.json.*"))
    (index.directory / "index.json").write_text('{"corpus": 3}')
    with pytest.raises(UnusableIndexError, match="'a@x' is damaged: run `nexusflow index`"):
        index.about()


def test_a_damaged_index_does_not_keep_another_from_being_found(indexes: Indexes) -> None:
    stand(indexes, "good@x", 1)
    damaged = stand(indexes, "bad@x", 2)
    (damaged.directory / "index.json").write_text("{")
    (indexes.folder / "unfinished@x" / "chroma-1").mkdir(parents=True)
    assert indexes.find().name == "good@x"
    assert [index.name for index in indexes.all()] == ["bad@x", "good@x", "unfinished@x"]
    with pytest.raises(UnusableIndexError, match="was never finished"):
        indexes.find("unfinished").about()


def test_the_index_of_the_current_folder_comes_first(indexes: Indexes, tmp_path: Path) -> None:
    base = tmp_path.resolve()
    stand(indexes, "work@x", 1, corpus=str(base / "work"))
    stand(indexes, "docs@x", 2, corpus=str(base / "work" / "docs"))
    stand(indexes, "else@x", 3, corpus=str(base / "else"))
    stand(indexes, "stdlib@x", 4)
    for near, name in {
        "work": "work@x",
        "work/src": "work@x",
        "work/docs/deep": "docs@x",
        "else": "else@x",
        "nowhere": "stdlib@x",
        "workshop": "stdlib@x",
        ".": "stdlib@x",  # in none of them
    }.items():
        assert indexes.find(None, base / near).name == name, near


def test_of_the_indexes_that_fit_one_of_the_endpoint_in_use_is_found(
    indexes: Indexes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = os.path.realpath(tmp_path / "docs")
    local = {"local_model": "minilm", "base_url": None}
    stand(indexes, "docs@minilm", 1, corpus=docs, **local)
    stand(indexes, "docs@nexusflow.vip", 2, corpus=docs)
    stand(indexes, "docs@127.0.0.1", 3, corpus=docs, base_url="http://127.0.0.1:8765/v1")
    stand(indexes, "stdlib@minilm", 4, **local)

    def found(name: str | None = None) -> str:
        return indexes.find(name, Path(docs), is_of_this_endpoint).name

    monkeypatch.delenv("NEXUSFLOW_API_KEY", raising=False)
    monkeypatch.delenv("NEXUSFLOW_BASE_URL", raising=False)
    assert (found(), found("docs")) == ("docs@minilm", "docs@minilm")
    monkeypatch.setenv("NEXUSFLOW_API_KEY", "sk-air-secret")
    assert (found(), found("docs")) == ("docs@nexusflow.vip", "docs@nexusflow.vip")
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", "http://127.0.0.1:8765/v1")
    assert (found(), found("docs")) == ("docs@127.0.0.1", "docs@127.0.0.1")
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", "https://proxy.example/v1")
    assert found() == "docs@127.0.0.1"  # the most recently used one
    with pytest.raises(UnusableIndexError, match="the names of several indexes begin with 'docs'"):
        found("docs")


def test_an_index_with_a_limit_is_used_only_if_there_is_no_whole_one_of_its_corpus(
    indexes: Indexes, tmp_path: Path
) -> None:
    docs = os.path.realpath(tmp_path / "docs")
    limited = stand(indexes, "docs@x-64", 9, corpus=docs, complete=False)
    stand(indexes, "stdlib@x", 1)
    assert indexes.find(None, Path(docs)) == limited
    assert indexes.find(None, tmp_path) == limited  # a whole index of something else does not fit
    whole = stand(indexes, "docs@minilm", 2, corpus=docs, local_model="minilm", base_url=None)
    assert indexes.find(None, Path(docs)) == whole
    assert indexes.find(None, tmp_path) == whole
    assert indexes.find(None, Path(docs), lambda about: about.local_model is None) == limited
    stand(indexes, "docs@x-128", 8, corpus=docs, complete=False)
    assert indexes.find(None, Path(docs), lambda about: about.local_model is None) == limited
    stand(indexes, "docs@x", 3, corpus=docs)
    assert indexes.find(None, Path(docs), lambda about: about.local_model is None).name == "docs@x"


def test_a_description_without_a_note_on_completeness_counts_as_complete(indexes: Indexes) -> None:
    index = stand(indexes, "docs@x", 1, complete=False)
    told = json.loads((index.directory / "index.json").read_text("utf-8"))
    assert told.pop("complete") is False
    (index.directory / "index.json").write_text(json.dumps(told), "utf-8")
    assert index.about().complete


def test_an_index_of_the_same_service_is_used_whatever_path_its_address_has(
    indexes: Indexes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", "sk-air-secret")
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", "https://proxy.example/v1")
    bare = stand(indexes, "docs@proxy.example", 1, base_url="https://proxy.example")
    path = stand(indexes, "docs@proxy.example-a", 2, base_url="https://proxy.example:443/a/v1")
    for index in (bare, path):
        with reopened(index) as opened:
            assert opened.endpoint.base_url == "https://proxy.example/v1"
    assert indexes.find(prefer=is_of_this_endpoint) == bare
    for other in ("http://proxy.example/v1", "https://proxy.example:444/v1", "evil", ""):
        index = stand(indexes, "other@proxy.example", 3, base_url=other)
        with pytest.raises(ConfigurationError, match="was made at"), reopened(index):
            pytest.fail("it was opened")


def test_an_index_of_another_endpoint_needs_a_key_too_if_none_is_set(
    indexes: Indexes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NEXUSFLOW_BASE_URL", raising=False)
    index = stand(indexes, "docs@127.0.0.1", 2, base_url="http://127.0.0.1:8765/v1")
    for key, also in (
        ("", r" \(and NEXUSFLOW_API_KEY, which is not set\)"),
        ("sk-air-secret", ""),
    ):
        monkeypatch.setenv("NEXUSFLOW_API_KEY", key)
        told = f"now: set NEXUSFLOW_BASE_URL to use the index{also}$"
        with pytest.raises(ConfigurationError, match=told), reopened(index):
            pytest.fail("it was opened")


def test_an_index_of_another_endpoint_names_those_that_can_be_used(
    indexes: Indexes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NEXUSFLOW_API_KEY", raising=False)
    monkeypatch.delenv("NEXUSFLOW_BASE_URL", raising=False)
    stand(indexes, "stdlib@minilm", 1, local_model="minilm", base_url=None)
    index = stand(indexes, "docs@127.0.0.1", 2, base_url="http://127.0.0.1:8765/v1")
    with (
        pytest.raises(ConfigurationError, match=r"another one with --index \(stdlib@minilm\)$"),
        reopened(index),
    ):
        pytest.fail("it was opened")


def test_a_new_folder_is_filled_beside_the_one_in_use_and_replaces_it(
    indexes: Indexes,
) -> None:
    index = stand(indexes, "a@x", 1)
    assert index.draft(fresh=False) == "chroma-1"
    assert index.draft(fresh=True) == "chroma-2"
    (index.directory / "chroma-2").mkdir()
    assert index.chroma.name == "chroma-1"
    index.describe(about(folder="chroma-2"))
    assert index.chroma.name == "chroma-2"
    assert not (index.directory / "chroma-1").exists()


def test_the_folder_of_a_stopped_rebuild_is_removed_and_a_stopped_first_run_continues(
    indexes: Indexes,
) -> None:
    index = stand(indexes, "a@x", 1)
    (index.directory / "chroma-2").mkdir()
    assert index.draft(fresh=True) == "chroma-2"
    assert not (index.directory / "chroma-2").exists()
    first = Index(indexes.folder / "b@x")
    assert first.draft(fresh=False) == "chroma-1"
    (first.directory / "chroma-1").mkdir(parents=True)
    assert first.draft(fresh=False) == "chroma-1"


def test_a_damaged_description_leads_to_a_new_folder(indexes: Indexes) -> None:
    index = stand(indexes, "a@x", 1)
    (index.directory / "index.json").write_text("{")
    assert index.draft(fresh=False) == "chroma-2"
    assert (index.directory / "chroma-1").exists()


def test_one_process_at_a_time_writes_to_an_index(indexes: Indexes) -> None:
    index = stand(indexes, "a@x", 1)
    with (
        index.alone(),
        pytest.raises(UnusableIndexError, match="another process is updating the index 'a@x'"),
        index.alone(),
    ):
        pytest.fail("both write")
    with index.alone():
        pass


def test_a_folder_that_another_process_removes_meanwhile_is_made_again(
    indexes: Indexes, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = stand(indexes, "a@x", 1)
    shutil.rmtree(index.directory)
    makes, made = Path.mkdir, []

    def gone(path: Path, *arguments: Any, **options: Any) -> None:
        makes(path, *arguments, **options)
        if path == index.directory and len(made) < 2:
            made.append(path)
            path.rmdir()

    monkeypatch.setattr(Path, "mkdir", gone)
    with index.alone():
        assert index.directory.is_dir()
    assert len(made) == 2


def test_removing_an_index_leaves_other_files_of_its_folder_alone(indexes: Indexes) -> None:
    index = stand(indexes, "a@x", 1)
    (index.chroma / "chroma.sqlite3").write_text("")
    (index.directory / "mine.txt").write_text("keep")
    index.remove()
    index.remove()
    assert [entry.name for entry in index.directory.iterdir()] == ["mine.txt"]
    other = stand(indexes, "b@x", 1)
    other.remove()
    assert not other.directory.exists()


def test_the_description_of_an_index_never_decides_where_the_key_is_sent(
    indexes: Indexes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", "sk-air-secret")
    monkeypatch.delenv("NEXUSFLOW_BASE_URL", raising=False)
    index = stand(indexes, "a@x", 1, base_url="https://evil.example/v1")
    with (
        pytest.raises(ConfigurationError, match=r"was made at https://evil\.example/v1"),
        reopened(index),
    ):
        pytest.fail("it was opened")


def test_an_endpoint_shows_no_key() -> None:
    assert "secret" not in repr(SERVICE)


def test_a_url_without_a_key_is_refused_rather_than_ignored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NEXUSFLOW_API_KEY", raising=False)
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", "https://proxy.example/v1")
    with pytest.raises(ConfigurationError, match="NEXUSFLOW_API_KEY is not"), open_endpoint():
        pytest.fail("it was opened")


def test_a_key_chooses_the_service_and_starts_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", "sk-air-secret")
    monkeypatch.delenv("NEXUSFLOW_BASE_URL", raising=False)
    with open_endpoint(dimensions=512) as endpoint:
        assert endpoint == Endpoint("https://nexusflow.vip/v1", ApiKey("sk-air-secret"), 512)


def test_an_impossible_size_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigurationError, match="dimensions"), open_endpoint(dimensions=5):
        pytest.fail("it was opened")


def test_an_unusable_index_does_not_make_a_name_ambiguous(indexes: Indexes) -> None:
    usable = stand(indexes, "stdlib@minilm", 100)
    (indexes.folder / "stdlib@nexusflow.vip" / "chroma-1").mkdir(parents=True)
    assert indexes.find("stdlib") == usable
    assert indexes.find("stdlib@nexus").described() is None


def test_another_folders_index_does_not_answer_for_one_that_is_unfinished(
    indexes: Indexes, tmp_path: Path
) -> None:
    here = tmp_path / "texts" / "deep"
    here.mkdir(parents=True)
    stand(indexes, "stdlib@minilm", 100)
    unfinished = indexes.place(str(tmp_path / "texts"), "texts", SERVICE)
    (unfinished.directory / "chroma-1").mkdir(parents=True)
    with pytest.raises(UnusableIndexError, match=r"texts-\w+@nexusflow.vip' was never finished"):
        indexes.find(None, here)
    only = Indexes(tmp_path / "other")
    (only.place(str(here), "deep", SERVICE).directory / "chroma-1").mkdir(parents=True)
    with pytest.raises(UnusableIndexError, match="never finished"):
        only.find(None, here)
    assert indexes.find(None, tmp_path).name == "stdlib@minilm"
    nearer = stand(indexes, "deep@minilm", 50, corpus=os.path.realpath(here))
    assert indexes.find(None, here) == nearer
