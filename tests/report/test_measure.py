"""A report measures a map, groups, neighbours, near-duplicates, outliers and words."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from sklearn.manifold import trustworthiness
from sklearn.metrics import normalized_mutual_info_score

from nexusflow_integrations.report import measure

pytestmark = pytest.mark.timeout(600)

PROJECTIONS = ["auto", "pca", pytest.param("tsne", marks=pytest.mark.slow)]


def blobs(count: int = 90, groups: int = 3) -> tuple[measure.Floats, np.ndarray]:
    random = np.random.default_rng(0)
    centres = random.normal(size=(groups, 32))
    labels = np.arange(count) % groups
    found = centres[labels] + random.normal(scale=0.15, size=(count, 32))
    return measure.unit(found.astype(np.float32)), labels


def layout(vectors: measure.Floats, projection: str = "auto") -> measure.Layout:
    near, low = measure.neighbours(vectors), measure.reduced(vectors)
    return measure.project(low, near, projection)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(("projection", "method"), [("auto", "t-SNE"), ("pca", "PCA")])
def test_a_map_keeps_neighbours_together_and_fits_the_unit_square(
    projection: str, method: str
) -> None:
    vectors, _ = blobs()
    found = layout(vectors, projection)
    assert found.points.dtype == np.float32
    assert found.points.min() == 0
    assert found.points.max() == 1
    assert trustworthiness(vectors, found.points, n_neighbors=8) > 0.8
    assert found.method == method
    assert 0 < found.kept <= 1
    assert np.array_equal(found.points, layout(vectors, projection).points)


@pytest.mark.parametrize("count", [12, 20, 32])
def test_on_the_map_of_a_small_collection_the_nearest_point_is_of_the_same_group(
    count: int,
) -> None:
    random = np.random.default_rng(0)
    groups = np.arange(count) % (count // 4)
    middles = random.normal(size=(count // 4, 64))
    noise = random.normal(scale=0.6, size=(count, 64))
    vectors = measure.unit((middles[groups] + noise).astype(np.float32))
    points = layout(vectors, "tsne").points
    distances = np.linalg.norm(points[:, None] - points, axis=2) + np.eye(count) * 9
    assert (groups[distances.argmin(axis=1)] == groups).mean() > 0.9


@pytest.mark.slow
def test_tsne_shows_what_two_principal_components_cannot() -> None:
    vectors, _ = blobs(600, 30)
    apart = {name: layout(vectors, name) for name in ("pca", "auto")}
    assert measure.reduced(vectors).flat < 0.3
    assert apart["auto"].kept > 1.2 * apart["pca"].kept
    assert trustworthiness(vectors, apart["auto"].points, n_neighbors=8) > 0.95


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 11, 12, 13])
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_a_few_points_have_a_map_too(count: int, projection: str) -> None:
    found = layout(blobs(count)[0], projection)
    assert found.points.shape == (count, 2)
    assert np.isfinite(found.points).all()


FEW = {
    "equal": np.ones((50, 8)),
    "zeros": np.zeros((50, 8)),
    "equal but for rounding": np.tile(np.random.default_rng(0).normal(size=64), (300, 1)),
    "collinear": np.outer(np.linspace(1, 2, 200), np.ones(64)),
    "on a line": np.eye(64)[0] + np.outer(np.linspace(0, 1, 200), np.eye(64)[1]),
    "opposite": np.outer(np.where(np.arange(60) % 2, 1, -1), np.ones(16)),
    **{f"{many} distinct": np.eye(16)[np.arange(200) % many] for many in (2, 3, 4, 5, 13)},
    "nearly all equal": np.vstack([np.tile(np.eye(16)[0], (195, 1)), np.eye(16)[1:6]]),
    "of one number": np.linspace(-1, 1, 50)[:, None],
    "of two numbers": np.random.default_rng(0).normal(size=(50, 2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FEW)
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_few_distinct_vectors_have_map_and_clusters_without_a_warning(
    kind: str, projection: str, recwarn: pytest.WarningsRecorder
) -> None:
    vectors = measure.unit(FEW[kind].astype(np.float32))
    found = layout(vectors, projection)
    assert np.isfinite(found.points).all()
    assert 0 <= found.points.min() <= found.points.max() <= 1
    groups = measure.clusters(measure.reduced(vectors), ["some words"] * len(vectors))
    assert len(measure.colours(groups, found.points)) == len(groups.names)
    assert [str(item.message) for item in recwarn] == []


def test_equal_points_lie_in_the_middle() -> None:
    found = layout(np.ones((20, 8), np.float32) / np.float32(8**0.5))
    assert (found.points == 0.5).all()
    assert measure.reduced(np.ones((20, 8), np.float32)).flat == 0


def test_two_groups_of_equal_vectors_are_two_clusters() -> None:
    vectors = np.eye(16, dtype=np.float32)[np.arange(200) % 2]
    texts = ["rain" if number % 2 else "bread" for number in range(200)]
    found = measure.clusters(measure.reduced(vectors), texts)
    assert sorted(found.names) == ["bread", "rain"]


def test_components_say_how_much_of_the_variance_they_hold() -> None:
    vectors = np.random.default_rng(0).normal(size=(500, 4)) * [3, 2, 1, 1]
    assert measure.reduced(vectors.astype(np.float32)).flat == pytest.approx(13 / 15, abs=0.03)


def test_opentsne_that_is_not_installed_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "openTSNE"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "openTSNE", None)
    with pytest.raises(ImportError, match=r"pip install \"nexusflow-integrations\[report\]\""):
        measure.need_packages()


def test_neighbours_are_the_nearest_others_with_their_cosines() -> None:
    vectors, _ = blobs()
    near = measure.neighbours(vectors)
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -2)
    expected = np.sort(scores, axis=1)[:, ::-1][:, :15]
    assert np.allclose(near.scores, expected, atol=1e-5)
    assert not (near.places == np.arange(90)[:, None]).any()
    assert measure.neighbours(vectors[:1]).places.shape == (1, 0)
    assert np.array_equal(measure.neighbours(vectors, 6).places, near.first(6).places)


def test_neighbours_are_the_same_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, _ = blobs()
    whole = measure.neighbours(vectors, 6)
    monkeypatch.setattr(measure, "_BLOCK", 7 * len(vectors))
    cut = measure.neighbours(vectors, 6)
    assert np.allclose(cut.scores, whole.scores, atol=1e-6)


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
    found = measure.clusters(measure.reduced(vectors), texts)
    assert normalized_mutual_info_score(labels, found.of) > 0.99
    assert {frozenset(name.split(", ")) for name in found.names} == {
        frozenset(pair) for pair in (("rain", "storm"), ("bread", "butter"), ("violin", "flute"))
    }


def test_texts_without_words_still_cluster() -> None:
    found = measure.clusters(measure.reduced(blobs()[0]), ["12"] * 90)
    assert found.names[0].startswith("cluster")


def test_clusters_that_share_their_words_keep_apart() -> None:
    found = measure.clusters(measure.reduced(blobs()[0]), ["rain"] * 90)
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
    labels = [f"s{number % 60}" for number in range(600)] + ["s0"]
    found = measure.sources(labels)
    assert found is not None
    assert (found.names[0], found.names[-1]) == ("s0", measure.OTHERS)
    shown = measure.colours(found, np.random.default_rng(0).random((601, 2), np.float32))
    assert shown[:3] == [0, 1, 2]
    assert shown[-1] == measure.COLOURS
    assert measure.COLOURS not in shown[:-1]


def test_sources_are_shortened_until_few_texts_are_left_to_the_others() -> None:
    labels = [
        f"package{n % 5}.module{n % 25}.part{n % 250}.function{n}" for n in range(5000)
    ]  # 250 parts for 5,000 texts: named one by one, most of them would be others
    found = measure.sources(labels)
    assert found is not None
    assert set(found.names) == {f"package{n % 5}.module{n}" for n in range(25)}


def test_groups_near_to_each_other_have_different_colours() -> None:
    side = 6
    of = np.repeat(np.arange(side * side, dtype=np.uint8), 5)
    points = np.stack([of % side, of // side], axis=1).astype(np.float32) / side
    names = [f"g{number}" for number in range(side * side)]
    shown = np.array(measure.colours(measure.Grouping("cluster", names, of), points))
    assert shown.max() < measure.COLOURS
    grid = shown.reshape(side, side)
    assert (grid[1:] != grid[:-1]).all()
    assert (grid[:, 1:] != grid[:, :-1]).all()


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
