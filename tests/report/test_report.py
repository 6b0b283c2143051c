"""The file has what it should and no secret, and writing it costs nothing unexpected."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from collections import UserDict
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chromadb
import numpy as np
import pytest
from chromadb.errors import ChromaError

from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction
from nexusflow_integrations.chroma_collections import pages
from nexusflow_integrations.errors import ConfigurationError, InvalidInputError
from nexusflow_integrations.local import LocalServer
from nexusflow_integrations.report import Question, measure, write_report

from .conftest import EVIL, KEY, documents, fill

pytestmark = pytest.mark.timeout(600)


class Page(HTMLParser):
    """The page as a browser's parser sees it."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.scripts: list[str] = []
        self.policy = ""
        self._inside = ""
        self.text = path.read_text("utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._inside = tag
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        named = dict(attrs)
        if named.get("http-equiv") == "Content-Security-Policy":
            self.policy = named["content"] or ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script" and data.strip():
            self.scripts.append(data)

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.scripts[0])
        return found


def test_a_service_that_limits_reads_gets_smaller_ones(
    collection: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = chromadb.Collection.get

    def read(self: Any, ids: Any = None, **fields: Any) -> Any:
        if max(fields.get("limit") or 0, len(ids or ())) > 60:
            raise ChromaError("Quota exceeded: current usage exceeds limit of 60")
        return get(self, ids=ids, **fields)

    monkeypatch.setattr(chromadb.Collection, "get", read)
    monkeypatch.setattr(pages, "SMALL_PAGE", 50)
    assert write_report(collection, tmp_path / "out.html", projection="pca").points == 121


def test_the_file_holds_points_texts_sources_and_measures(collection: Any, tmp_path: Path) -> None:
    done = write_report(collection, tmp_path / "out.html", projection="pca")
    assert (done.points, done.total, done.projection) == (121, 121, "PCA")
    data = Page(done.path).data
    assert dict(zip(data["ids"], data["texts"], strict=True)) == {
        **{f"id-{number}": text for number, text in enumerate(documents(120))},
        "evil": EVIL,
    }
    for axis in "xy":
        values = np.frombuffer(base64.b64decode(data[axis]), "<f4")
        assert values.shape == (121,)
        assert 0 <= values.min() <= values.max() <= 1
    assert [item["label"] for item in data["groupings"]] == ["source", "cluster"]
    assert {"otter.md", "panda.md"} <= set(data["groupings"][0]["names"])
    assert data["questions"] == []
    assert done.usage.tokens == 0


def test_a_text_that_looks_like_markup_stays_text(collection: Any, tmp_path: Path) -> None:
    done = write_report(
        collection, tmp_path / "out.html", questions=[EVIL], projection="pca", title=EVIL
    )
    page = Page(done.path)
    assert page.tags.count("script") == 2
    assert "img" not in page.tags
    assert page.handlers == []
    assert EVIL in page.data["texts"]
    assert page.data["questions"][0]["text"] == EVIL


def test_the_page_permits_nothing_but_its_own_style_and_script(
    collection: Any, tmp_path: Path
) -> None:
    page = Page(write_report(collection, tmp_path / "out.html", projection="pca").path)
    assert "default-src 'none'" in page.policy
    assert "unsafe" not in page.policy
    script = hashlib.sha256(page.scripts[1].encode()).digest()
    assert f"script-src 'sha256-{base64.b64encode(script).decode()}'" in page.policy
    outside = page.text.replace("http://www.w3.org/2000/svg", "")
    outside = outside.replace(page.scripts[0], "")  # where links to sources are
    assert re.findall(r"https?://|url\(|@import", outside) == []


def test_the_key_is_not_in_the_file(collection: Any, tmp_path: Path) -> None:
    done = write_report(collection, tmp_path / "out.html", questions=["otter"], projection="pca")
    assert "very-secret" not in done.path.read_text("utf-8")
    assert KEY not in repr(done)


def test_questions_find_exactly_what_the_vectors_say(
    collection: Any, function: NexusFlowEmbeddingFunction, server: LocalServer, tmp_path: Path
) -> None:
    server.reset_stats()
    asked = [Question("Who eats thing number 5?", ["id-5", "id-6"]), Question("finch")]
    done = write_report(collection, tmp_path / "out.html", questions=asked, projection="pca")
    assert done.usage.tokens == server.stats.tokens > 0
    received = server.stats.received
    assert set(received[: len(asked)]) == {item.text for item in asked}
    assert len(received) == len(asked) + 3  # documents, to compare the model

    first, second = Page(done.path).data["questions"]
    held = collection.get(include=["embeddings"])
    scores = np.asarray(held["embeddings"]) @ np.asarray(function.embed_query([asked[0].text]))[0]
    expected = [held["ids"][place] for place in np.argsort(-scores)]
    ids = Page(done.path).data["ids"]
    assert [ids[place] for place, _ in first["hits"]] == expected[:10]
    assert first["hits"][0][1] == pytest.approx(scores.max(), abs=1e-3)
    rank = 1 + min(expected.index("id-5"), expected.index("id-6"))
    assert done.ranks == (rank,)
    assert (first["rank"], second["rank"]) == (rank, None)
    assert "eats" not in first["words"] or "thing" not in first["words"]


def test_a_large_collection_is_sampled_and_keeps_the_right_answers(
    collection: Any, tmp_path: Path
) -> None:
    def sample() -> list[str]:
        done = write_report(
            collection,
            tmp_path / "out.html",
            questions=[Question("otter", ["evil"])],
            limit=20,
            projection="pca",
        )
        assert done.total == 121
        assert 20 <= done.points <= 21
        assert done.ranks[0] is not None
        found: list[str] = Page(done.path).data["ids"]
        return found

    first = sample()
    assert "evil" in first
    assert sample() == first


def test_a_collection_without_documents_or_sources_still_has_a_map(tmp_path: Path) -> None:
    bare: Any = chromadb.PersistentClient(str(tmp_path / "bare")).create_collection("bare")
    bare.add(ids=["a", "b", "c"], embeddings=[[1.0, 0], [0, 1], [1, 1]])
    done = write_report(bare, tmp_path / "out.html")
    assert done.points == 3
    assert Page(done.path).data["texts"] == ["", "", ""]


def test_one_document_is_enough(function: NexusFlowEmbeddingFunction, tmp_path: Path) -> None:
    done = write_report(fill(tmp_path / "one", function, 0), tmp_path / "out.html")
    assert done.points == 1


def test_an_empty_collection_is_an_error(tmp_path: Path) -> None:
    empty = chromadb.PersistentClient(str(tmp_path / "empty")).create_collection("empty")
    with pytest.raises(ConfigurationError, match="'empty' is empty"):
        write_report(empty, tmp_path / "out.html")


def test_questions_to_a_foreign_collection_are_an_error(tmp_path: Path) -> None:
    bare: Any = chromadb.PersistentClient(str(tmp_path / "bare")).create_collection("bare")
    bare.add(ids=["a"], embeddings=[[1.0, 0]])
    with pytest.raises(ConfigurationError, match="embedding_function="):
        write_report(bare, tmp_path / "out.html", questions=["x"])


def test_questions_of_another_size_are_an_error(
    collection: Any, server: LocalServer, tmp_path: Path
) -> None:
    other = NexusFlowEmbeddingFunction(KEY, api_base=server.base_url, dimensions=64)
    with pytest.raises(ConfigurationError, match="64 dimensions and the collection has 128"):
        write_report(collection, tmp_path / "o.html", questions=["x"], embedding_function=other)


def test_an_expected_id_that_does_not_exist_is_an_error_before_anything_is_embedded(
    collection: Any, server: LocalServer, tmp_path: Path
) -> None:
    server.reset_stats()
    asked = [Question("otter", ["id-1"]), Question("finch", ["id-2", "id-999"])]
    with pytest.raises(ConfigurationError, match=r"'finch' expects the id 'id-999'.*'zoo'"):
        write_report(collection, tmp_path / "out.html", questions=asked)
    assert server.stats.requests == 0
    assert list(tmp_path.glob("out*")) == []


def test_vectors_of_another_model_are_an_error_of_the_same_size(
    server: LocalServer, function: NexusFlowEmbeddingFunction, tmp_path: Path
) -> None:
    client: Any = chromadb.PersistentClient(str(tmp_path / "other"))
    collection = client.create_collection("other", embedding_function=function)
    rows = np.random.default_rng(0).normal(size=(20, 128)).astype(np.float32)
    texts = documents(20)
    collection.add(ids=[str(number) for number in range(20)], embeddings=rows, documents=texts)
    done = write_report(collection, tmp_path / "map.html")  # a map sends no request
    assert done.usage.requests == 0
    with pytest.raises(ConfigurationError, match=r"the service embeds document '\d+' of"):
        write_report(collection, tmp_path / "out.html", questions=["otter"])
    assert not (tmp_path / "out.html").exists()


@pytest.mark.slow
def test_the_page_says_model_endpoint_size_date_and_what_the_map_shows(
    collection: Any, tmp_path: Path
) -> None:
    data = Page(write_report(collection, tmp_path / "out.html", questions=["otter"]).path).data
    assert (data["model"], data["endpoint"]) == ("text-embedding-v4", "localhost")
    assert (data["dimensions"], data["compared"]) == (128, 3)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", data["made"])
    assert data["projection"] == "t-SNE"
    assert 0 < data["variance"] < 1
    assert 0 < data["kept"] <= 1
    named = write_report(collection, tmp_path / "named.html", model="my-model").path
    named_data = Page(named).data
    assert (named_data["model"], named_data["cost"]["free"]) == ("my-model", True)
    assert not data["cost"]["free"]


def test_the_page_has_every_colour_that_groups_get(collection: Any, tmp_path: Path) -> None:
    script = Page(write_report(collection, tmp_path / "out.html", projection="pca").path).scripts[1]
    colours = re.search(r"const COLOURS = \[(.*)\]", script)
    assert colours is not None
    assert len(colours[1].split(",")) == measure.COLOURS + 1  # and the grey of the others


def test_only_addresses_that_are_safe_to_follow_become_links(tmp_path: Path) -> None:
    addresses = ["https://a.example/x#y", "file:///tmp/a.md", "javascript:alert(1)", "a.md:3", ""]
    addresses += ["data:text/html,x", " https://a.example", "HTTPS://a.example"]
    bare: Any = chromadb.PersistentClient(str(tmp_path / "bare")).create_collection("bare")
    bare.add(
        ids=[str(number) for number in range(len(addresses))],
        embeddings=np.eye(8, dtype=np.float32),
        metadatas=[{"source": "s", "url": address} for address in addresses],
    )
    data = Page(write_report(bare, tmp_path / "out.html").path).data
    assert [address for address in data["links"] if address] == addresses[:2]
    bare.update(ids=["0"], metadatas=[{"source": "https://b.example", "url": ""}])
    data = Page(write_report(bare, tmp_path / "out.html").path).data
    assert data["links"][data["ids"].index("0")] == "https://b.example"


def test_a_failure_leaves_neither_a_file_nor_a_part_of_one(collection: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError):
        write_report(collection, tmp_path / "out.html", questions=[" "])
    assert list(tmp_path.glob("out*")) == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("abc", r"expected a list of questions, not one string: write \[question\]"),
        ({"q1": "a1"}, r"not dict: pass its values\(\)"),
        (UserDict(q1="a1"), r"not UserDict: pass its values\(\)"),
        ({"q"}, "not set, which has no order"),
        (SimpleNamespace(columns=["question"]), "which yields the names of its columns"),
        (None, "not NoneType"),
        (["otter", 5], "question 1 must be a string or a Question of .*, not int"),
        (
            [SimpleNamespace(text="otter", answers=())],
            "question 0 must be a string or a Question of .*report",
        ),
        ([Question(5)], "text 0 must be a string, not int"),  # type: ignore[arg-type]
        ([Question("otter", "id-1")], "question 0: expected a list of ids"),
    ],
)
def test_questions_of_the_wrong_kind_are_refused_before_anything_is_embedded(
    collection: Any, server: LocalServer, tmp_path: Path, asked: Any, said: str
) -> None:
    server.reset_stats()
    with pytest.raises(InvalidInputError, match=said):
        write_report(collection, tmp_path / "out.html", questions=asked)
    assert server.stats.requests == 0
    assert list(tmp_path.glob("out*")) == []


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("collection", [5, None, "zoo"]),
        ("path", [5, None, b"out.html", "a\0b", Path("."), "/"]),
        ("embedding_function", [5, "text-embedding-v4", len]),
        ("source", [5, b"a"]),
        ("url", [5, b"a"]),
        ("limit", ["5", 0, -1, True, 5.0, float("nan"), None]),
        ("projection", ["map", 5, None]),
        ("title", [5, b"a title"]),
        ("model", [5, b"a model"]),
    ],
)
def test_an_argument_of_another_type_is_refused_by_its_name(
    collection: Any, server: LocalServer, tmp_path: Path, name: str, values: list[Any]
) -> None:
    server.reset_stats()
    given = {"collection": collection, "path": tmp_path / "out.html", "questions": ["otter"]}
    for value in values:
        with pytest.raises(ConfigurationError, match=f"^{name} must be "):
            write_report(**given | {name: value})  # type: ignore[arg-type]
    assert server.stats.requests == 0
    assert list(tmp_path.glob("out*")) == []
    with pytest.raises(
        ConfigurationError, match=r"^path must be the path of a file: '/' is a fold"
    ):
        write_report(collection, "/")


def test_expected_ids_may_be_a_set_and_a_collection_may_have_no_sources(
    collection: Any, tmp_path: Path
) -> None:
    (first, *_) = collection.get(include=[])["ids"]
    asked = [Question("otter", kind([first])) for kind in (set, frozenset, tuple)]
    done = write_report(collection, tmp_path / "out.html", questions=asked, source=None, url=None)
    assert len(done.ranks) == 3
    assert len(set(done.ranks)) == 1


def test_without_scikit_learn_nothing_is_embedded(
    collection: Any, server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    server.reset_stats()
    with pytest.raises(ImportError, match=r"pip install \"nexusflow-integrations\[report\]\""):
        write_report(collection, tmp_path / "out.html", questions=["otter"])
    assert server.stats.requests == 0
