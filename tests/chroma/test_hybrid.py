"""``hybrid_query`` joins vectors and keywords, and its keyword index is never out of date."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chromadb
import pytest

pytest.importorskip("bm25s", reason="the extra hybrid")

from nexusflow_integrations import errors
from nexusflow_integrations.chroma_collections import (
    Hit,
    add_documents,
    ahybrid_query,
    copy_collection,
    exchange_names,
    hybrid_query,
    keyword_index,
    open_collection,
    sync_documents,
)
from nexusflow_integrations.local import LocalServer

from .conftest import KEY
from .test_embedding_function import Make

DOCUMENTS = {
    "panda": "The red panda sleeps in a tree; its paper has the number QX-7731.",
    "otter": "Sea otters hold hands while they sleep.",
    "bus": "The bus number 12 leaves at noon.",
    "zh": "小熊猫生活在山里，主要吃竹子。",
    "empty": "?!",
}
METADATAS = [{"kind": "animal"}, {"kind": "animal"}, {"kind": "bus"}, {"kind": "animal"}, None]


@pytest.fixture(autouse=True)
def nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    keyword_index._open.clear()


@pytest.fixture
def collection(client: Any, make: Make) -> Any:
    opened = open_collection(client, "docs", make())
    add_documents(opened, ids=[*DOCUMENTS], documents=[*DOCUMENTS.values()], metadatas=METADATAS)
    return opened


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each index that is made, by its number of documents."""
    made: list[int] = []
    real = keyword_index.KeywordIndex.of.__func__  # type: ignore[attr-defined]

    def of(cls: Any, pages: Any) -> Any:
        index = real(cls, pages)
        made.append(len(index.ids))
        return index

    monkeypatch.setattr(keyword_index.KeywordIndex, "of", classmethod(of))
    return made


def home_of(collection: Any) -> Path:
    return keyword_index.folder_for(collection)


def by_keyword(collection: Any, text: str, **options: Any) -> list[str]:
    hits = hybrid_query(collection, text, **options)
    found = [hit for hit in hits if hit.keyword_rank is not None]
    return [hit.id for hit in sorted(found, key=lambda hit: hit.keyword_rank or 0)]


def test_both_rankings_are_joined(collection: Any) -> None:
    first, *rest = hybrid_query(collection, "red panda paper number QX-7731", 3)
    assert first == Hit("panda", DOCUMENTS["panda"], {"kind": "animal"}, 2 / 61, 1, 1)
    assert [hit.score for hit in rest] == sorted((hit.score for hit in rest), reverse=True)
    for hit in rest:
        ranks = [rank for rank in (hit.vector_rank, hit.keyword_rank) if rank is not None]
        assert hit.score == sum(1 / (60 + rank) for rank in ranks)
    assert by_keyword(collection, "谁吃竹子？") == ["zh"]
    assert by_keyword(collection, "sleeping otter") == ["otter", "panda"]


def test_a_document_that_only_one_ranking_has_is_found(
    client: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nexusflow_integrations.chroma_collections import hybrid

    monkeypatch.setattr(hybrid, "DEPTH", 1)
    opened = client.create_collection("far", embedding_function=make())
    near, far = make()(["red panda", "something else"])
    opened.add(
        ids=["near", "far"], documents=["no such words", "red panda"], embeddings=[near, far]
    )
    hits = {hit.id: hit for hit in hybrid_query(opened, "red panda", 2)}
    assert hits["near"].keyword_rank is None
    assert hits["far"].keyword_rank == 1


def test_a_filter_applies_to_both_rankings(collection: Any) -> None:
    assert by_keyword(collection, "number", where={"kind": "bus"}) == ["bus"]
    hits = hybrid_query(collection, "number", where={"kind": "animal"})
    assert {hit.id for hit in hits} == {"panda", "otter", "zh"}
    assert hybrid_query(collection, "number", where={"kind": "none"}) == []


def test_the_async_function_finds_the_same(collection: Any) -> None:
    expected = hybrid_query(collection, "a bus", 2)
    assert asyncio.run(ahybrid_query(collection, "a bus", 2)) == expected


def test_an_empty_collection_finds_nothing_and_sends_nothing(
    client: Any, make: Make, server: LocalServer
) -> None:
    opened = open_collection(client, "docs", make())
    server.reset_stats()
    assert hybrid_query(opened, "a question") == []
    assert server.stats.requests == 0


def test_one_query_sends_one_text(collection: Any, server: LocalServer) -> None:
    server.reset_stats()
    hybrid_query(collection, "the one question")
    assert server.stats.received == ("the one question",)


# -- the index follows the collection --------------------------------------------------------------


def other_hands(collection: Any) -> None:
    collection.update(ids=["bus"], documents=["The train to Utrecht."])


def a_sync(collection: Any) -> None:
    changed = {**DOCUMENTS, "bus": "The train to Utrecht."}
    sync_documents(collection, ids=[*changed], documents=[*changed.values()], metadatas=METADATAS)


def another_process(collection: Any) -> None:
    code = (
        "import sys, chromadb\n"
        "there = chromadb.PersistentClient(sys.argv[1]).get_collection('docs',"
        " embedding_function=None)\n"
        "there.update(ids=['bus'], documents=['The train to Utrecht.'],"
        " embeddings=[[1.0] * 64])\n"
    )
    folder = home_of(collection).parent.parent
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, timeout=300)


def test_a_document_that_is_removed_during_the_query_is_not_a_hit(
    collection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys, chromadb\n"
        "chromadb.PersistentClient(sys.argv[1]).get_collection('docs',"
        " embedding_function=None).delete(ids=['bus'])\n"
    )
    collection.add(
        ids=["bare"], embeddings=collection.get(["bus"], include=["embeddings"])["embeddings"]
    )
    assert hybrid_query(collection, "bus")[0].id == "bus"
    folder = home_of(collection).parent.parent
    real = type(collection).query

    def query(there: Any, **options: Any) -> Any:
        subprocess.run([sys.executable, "-c", code, str(folder)], check=True, timeout=300)
        return real(there, **options)

    monkeypatch.setattr(type(collection), "query", query)
    found = {hit.id: hit.document for hit in hybrid_query(collection, "bus")}
    assert found == {name: text for name, text in DOCUMENTS.items() if name != "bus"} | {"bare": ""}


@pytest.mark.parametrize("change", [other_hands, a_sync, another_process])
@pytest.mark.parametrize("begin_anew", [False, True])
def test_the_index_matches_whatever_program_changes_the_collection(
    collection: Any, change: Callable[[Any], None], begin_anew: bool
) -> None:
    assert by_keyword(collection, "bus") == ["bus"]
    change(collection)
    if begin_anew:
        keyword_index._open.clear()
    assert by_keyword(collection, "bus") == []
    assert by_keyword(collection, "Utrecht") == ["bus"]
    collection.delete(ids=["bus"])
    assert by_keyword(collection, "Utrecht") == []


def test_a_collection_that_keeps_changing_is_searched_without_error(
    collection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = keyword_index._pages

    def pages(there: Any) -> Any:
        for number, (ids, texts) in enumerate(real(there)):
            yield ids, texts
            if number == 0:  # its first document moves to the end, where it is read again
                there.delete(ids=ids[:1])
                there.add(ids=ids[:1], documents=texts[:1])

    monkeypatch.setattr(keyword_index, "PAGE", 2)
    monkeypatch.setattr(keyword_index, "_pages", pages)
    found = by_keyword(collection, "QX-7731, otter, noon, 竹子")
    assert len(found) >= 3
    assert set(found) <= {"panda", "otter", "bus", "zh"}


def test_an_index_that_fits_is_not_made_again(collection: Any, built: list[int]) -> None:
    for _ in range(3):
        hybrid_query(collection, "a bus")
        keyword_index._open.clear()
    collection.update(ids=["bus"], metadatas=[{"kind": "coach"}])
    assert by_keyword(collection, "bus", where={"kind": "coach"}) == ["bus"]
    assert built == [5]


def test_a_sync_keeps_an_index_and_makes_none(collection: Any, built: list[int]) -> None:
    more = {"ids": ["more"], "documents": ["A document about aardvarks."]}
    add_documents(collection, **more)
    assert not home_of(collection).parent.exists()
    hybrid_query(collection, "a bus")
    assert built == [6]
    sync_documents(collection, **more, remove=True)
    assert built == [6, 1]
    add_documents(collection, ids=["last"], documents=["A zebra."])
    assert built == [6, 1, 2]
    sync_documents(collection, **more, remove=False)
    assert by_keyword(collection, "zebra") == ["last"]
    assert built == [6, 1, 2]


def test_an_index_that_cannot_be_kept_does_not_fail_a_sync(
    collection: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hybrid_query(collection, "a bus")

    def fails(*_: Any) -> None:
        raise ImportError("gone")

    monkeypatch.setattr(keyword_index.KeywordIndex, "of", fails)
    assert add_documents(collection, ids=["new"], documents=["A zebra."]).added == 1
    assert "rebuilds it" in caplog.text
    monkeypatch.undo()
    assert by_keyword(collection, "zebra") == ["new"]


def test_exchanged_names_and_copies_have_the_index_of_their_own_documents(
    client: Any, make: Make, collection: Any
) -> None:
    assert by_keyword(collection, "bus") == ["bus"]
    copy_collection(client, "docs", "larger", make(dimensions=128), exchange=False)
    larger = open_collection(client, "larger")
    larger.update(ids=["bus"], documents=["The train to Utrecht."])
    assert by_keyword(larger, "Utrecht") == ["bus"]
    exchange_names(client, "docs", "larger")
    assert by_keyword(open_collection(client, "docs"), "Utrecht") == ["bus"]
    assert by_keyword(open_collection(client, "larger"), "bus") == ["bus"]
    assert by_keyword(collection, "bus") == ["bus"]


def test_the_index_of_a_removed_collection_is_removed_by_the_next(
    client: Any, make: Make, collection: Any
) -> None:
    hybrid_query(collection, "a bus")
    client.delete_collection("docs")
    opened = open_collection(client, "docs", make())
    add_documents(opened, ids=["1"], documents=["A zebra."])
    assert by_keyword(opened, "zebra") == ["1"]
    assert [path.name for path in home_of(opened).parent.iterdir()] == [str(opened.id)]


def test_a_folder_that_was_copied_has_the_same_index(
    collection: Any, make: Make, tmp_path: Path, built: list[int]
) -> None:
    hybrid_query(collection, "a bus")
    shutil.copytree(home_of(collection).parent.parent, tmp_path / "copy")
    copied = open_collection(chromadb.PersistentClient(path=str(tmp_path / "copy")), "docs", make())
    assert by_keyword(copied, "bus") == ["bus"]
    assert built == [5]


# -- damage, and runs that end half way ------------------------------------------------------------


def damaged(home: Path) -> list[Path]:
    return [home / "current.json", *sorted(next(p for p in home.iterdir() if p.is_dir()).iterdir())]


@pytest.mark.parametrize("how", ["removed", "empty", "cut off", "of another version"])
def test_a_damaged_index_is_made_anew(collection: Any, how: str, built: list[int]) -> None:
    hybrid_query(collection, "a bus")
    for number in range(len(damaged(home_of(collection)))):
        path = damaged(home_of(collection))[number]
        if how == "removed":
            path.unlink()
        elif how == "empty":
            path.write_bytes(b"")
        elif how == "cut off":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif path.name == "current.json":
            current = json.loads(path.read_text())
            path.write_text(json.dumps(current | {"made_by": ["0"]}))
        keyword_index._open.clear()
        assert by_keyword(collection, "bus") == ["bus"]
        assert by_keyword(collection, "otters") == ["otter"]
    assert len(built) >= 2
    assert len(list(home_of(collection).iterdir())) == 2


KILLED = f"""
import os, signal, sys
import chromadb
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.chroma_collections import hybrid_query, keyword_index, open_collection

folder, address, moment = sys.argv[1:]
client = chromadb.PersistentClient(path=folder)
function = NexusFlowEmbeddingFunction({KEY!r}, api_base=address, dimensions=64)
collection = open_collection(client, "docs", function)

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if moment == "before saving":
    keyword_index.KeywordIndex.save = die
elif moment == "after saving":
    save = keyword_index.KeywordIndex.save
    keyword_index.KeywordIndex.save = lambda *given: (save(*given), die())
elif moment == "before the exchange":
    os.replace = die
elif moment == "before cleaning up":
    keyword_index._remove_orphans = die
    keyword_index.shutil.rmtree = lambda *_, **__: die()
hybrid_query(collection, "a bus")
"""


@pytest.mark.skipif(os.name != "posix", reason="kills")
@pytest.mark.parametrize(
    "moment",
    [
        *(
            pytest.param(moment, marks=pytest.mark.slow)
            for moment in ("before saving", "after saving", "before cleaning up")
        ),
        "before the exchange",
    ],
)
def test_a_run_that_is_killed_leaves_no_wrong_index(
    collection: Any, server: LocalServer, moment: str
) -> None:
    hybrid_query(collection, "a bus")
    collection.update(ids=["bus"], documents=["The train to Utrecht."])
    home = home_of(collection)
    command = [sys.executable, "-c", KILLED, str(home.parent.parent), server.base_url, moment]
    assert subprocess.run(command, timeout=300).returncode == -signal.SIGKILL
    keyword_index._open.clear()
    assert by_keyword(collection, "Utrecht") == ["bus"]
    assert by_keyword(collection, "bus") == []
    collection.update(ids=["bus"], documents=["A third text."])
    assert by_keyword(collection, "Utrecht") == []
    assert len(list(home.iterdir())) == 2


def test_threads_share_one_index(collection: Any, built: list[int]) -> None:
    found: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: found.append(by_keyword(collection, "bus")))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert found == [["bus"]] * 6
    assert built == [5]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_in_a_folder_that_may_not_be_written_the_index_serves_this_process(
    collection: Any,
) -> None:
    home = home_of(collection).parent
    home.mkdir()
    home.chmod(0o500)
    assert by_keyword(collection, "bus") == ["bus"]
    home.chmod(0o700)
    assert list(home.iterdir()) == []


# -- what cannot be asked --------------------------------------------------------------------------


def test_a_collection_without_a_folder_is_refused(make: Make) -> None:
    opened = open_collection(chromadb.EphemeralClient(), "hybrid", make())
    with pytest.raises(errors.ConfigurationError, match="folder of a PersistentClient"):
        hybrid_query(opened, "a bus")


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"text": " "}, errors.InvalidInputError, "blank|empty"),
        ({"text": 3}, errors.InvalidInputError, "text"),
        ({"n_results": 0}, errors.ConfigurationError, "n_results"),
        ({"n_results": "5"}, errors.ConfigurationError, "n_results"),
        ({"where": {"kind": {"$near": 3}}}, errors.ConfigurationError, "where"),
        ({"collection": "docs"}, errors.ConfigurationError, "PersistentClient, not str"),
    ],
)
def test_bad_input_is_refused_before_anything_is_sent(
    collection: Any, server: LocalServer, arguments: dict[str, Any], error: type, said: str
) -> None:
    server.reset_stats()
    with pytest.raises(error, match=said):
        hybrid_query(**{"collection": collection, "text": "a bus", **arguments})
    assert server.stats.requests == 0


def test_without_the_package_the_error_says_what_to_install(
    collection: Any, monkeypatch: pytest.MonkeyPatch, server: LocalServer
) -> None:
    server.reset_stats()
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ImportError, match=r'pip install "nexusflow-integrations\[hybrid\]"'):
        hybrid_query(collection, "a bus")
    assert server.stats.requests == 0
