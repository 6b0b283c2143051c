"""What is measured in vectors: map, groups, neighbours, near-duplicates, outliers, words."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from sklearn.manifold import trustworthiness
from sklearn.metrics import normalized_mutual_info_score

from nexusflow_integrations.report import measure

pytestmark = pytest.mark.timeout(600)


def blobs(count: int = 90, groups: int = 3) -> tuple[measure.Floats, np.ndarray]:
    random = np.random.default_rng(0)
    centres = random.normal(size=(groups, 32))
    labels = np.arange(count) % groups
    found = centres[labels] + random.normal(scale=0.15, size=(count, 32))
    return measure.unit(found.astype(np.float32)), labels


@pytest.mark.parametrize("projection", ["auto", "pca", "tsne"])
def test_a_map_keeps_neighbours_together_and_fits_the_unit_square(projection: str) -> None:
    vectors, _ = blobs()
    points, made_by = measure.project(vectors, projection)  # type: ignore[arg-type]
    assert points.dtype == np.float32
    assert points.min() == 0
    assert points.max() == 1
    assert trustworthiness(vectors, points, n_neighbors=8) > 0.8
    assert made_by in {"PCA", "t-SNE", "UMAP"}
    again, _ = measure.project(vectors, projection)  # type: ignore[arg-type]
    assert np.array_equal(points, again)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("projection", ["auto", "pca", "tsne"])
def test_a_handful_of_points_has_a_map_too(count: int, projection: str) -> None:
    points, _ = measure.project(blobs(count)[0], projection)  # type: ignore[arg-type]
    assert points.shape == (count, 2)
    assert np.isfinite(points).all()


def test_equal_points_lie_in_the_middle() -> None:
    points, _ = measure.project(np.ones((20, 8), np.float32), "pca")
    assert (points == 0.5).all()


def test_umap_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match='pip install "umap-learn"'):
        measure.project(blobs()[0], "umap")


def test_neighbours_are_the_nearest_others_with_their_cosines() -> None:
    vectors, _ = blobs()
    near = measure.neighbours(vectors)
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -2)
    expected = np.sort(scores, axis=1)[:, ::-1][:, : measure.NEIGHBOURS]
    assert np.allclose(near.scores, expected, atol=1e-5)
    assert not (near.places == np.arange(90)[:, None]).any()
    assert measure.neighbours(vectors[:1]).places.shape == (1, 0)


def test_near_duplicates_are_named_once_and_outliers_first() -> None:
    vectors, _ = blobs()
    vectors[7] = vectors[3]
    vectors[50] = -vectors.mean(axis=0)
    near = measure.neighbours(measure.unit(vectors))
    (one, two, score), *_ = measure.near_duplicates(near, 0.999, 10)
    assert (one, two) == (3, 7)
    assert score == pytest.approx(1, abs=1e-5)
    pairs = [pair[:2] for pair in measure.near_duplicates(near, 0.5, 10)]
    assert len(set(pairs)) == len(pairs) == 10
    assert measure.outliers(near, 3)[0][0] == 50


def test_clusters_follow_meaning_and_are_named_by_their_words() -> None:
    vectors, labels = blobs()
    texts = [("rain and storm", "bread and butter", "violin and flute")[label] for label in labels]
    found = measure.clusters(vectors, texts)
    assert normalized_mutual_info_score(labels, found.of) > 0.99
    assert {frozenset(name.split(", ")) for name in found.names} == {
        frozenset(pair) for pair in (("rain", "storm"), ("bread", "butter"), ("violin", "flute"))
    }


def test_texts_without_words_still_cluster() -> None:
    found = measure.clusters(blobs()[0], ["12"] * 90)
    assert found.names[0].startswith("cluster")


def test_clusters_that_share_their_words_keep_apart() -> None:
    found = measure.clusters(blobs()[0], ["rain"] * 90)
    assert len(found.names) == len(set(found.of.tolist())) == 3


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([f"{name}.md:{n}" for name in "ab" for n in range(30)], {"a.md", "b.md"}),
        ([f"{module}.f{n}" for module in ("math", "os") for n in range(40)], {"math", "os"}),
        (
            [f"guide/{n}/page{m}.md" for n in range(3) for m in range(30)],
            {"guide/0", "guide/1", "guide/2"},
        ),
    ],
)
def test_sources_are_shortened_until_they_group(labels: list[str], names: set[str]) -> None:
    found = measure.sources(labels)
    assert found is not None
    assert set(found.names) == names


def test_sources_that_say_nothing_are_no_grouping() -> None:
    assert measure.sources([""] * 40) is None
    assert measure.sources([f"x{number}" for number in range(100)]) is None


def test_many_sources_leave_the_smallest_to_the_others() -> None:
    found = measure.sources([f"s{number % 20}" for number in range(200)] + ["s0"])
    assert found is not None
    assert len(found.names) == measure.GROUPS
    assert (found.names[0], found.names[-1]) == ("s0", "others")


def test_distinctive_words_are_in_few_texts_in_any_language() -> None:
    texts = [
        "The otter eats fish",
        "The panda eats bamboo",
        "小熊猫吃竹子",
        "The end",
        "The sea",
    ] * 3
    assert measure.distinctive_words("What does the otter eat?", texts) == ["otter", "eat"]
    assert "竹子" in measure.distinctive_words("谁吃竹子？", texts)


def test_the_histogram_holds_shares_of_pairs_and_nearest() -> None:
    vectors, _ = blobs()
    found = measure.histogram(vectors, measure.neighbours(vectors))
    assert len(found["edges"]) == measure.BINS + 1
    for name in ("random", "nearest"):
        assert sum(found[name]) == pytest.approx(1, abs=1e-3)
    centres = np.array(found["edges"][:-1])
    assert centres @ found["nearest"] > centres @ found["random"]


def test_broken_vectors_do_not_break_the_measures() -> None:
    vectors = np.array([[np.nan, 1], [0, 0], [3, 4]], np.float32)
    assert np.allclose(measure.unit(vectors), [[0, 1], [0, 0], [0.6, 0.8]])
