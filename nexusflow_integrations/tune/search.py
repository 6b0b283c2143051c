"""Which settings are tried, one dimension of choice after the other, and which is chosen.

This is not a full grid: each stage varies one property of the best setting so far. The stages with
the largest effect come first. Nothing here sends or measures anything.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nexusflow_integrations.tune.retrieval import STORAGES, Storage
from nexusflow_integrations.tune.scores import Bootstrap, Floats, Interval
from nexusflow_integrations.tune.settings import METHODS, Cutting, Method, Setting

READ = 4000
"""Characters of passages that are read for a question, when lengths of passages are compared."""
POINT = 0.01
"""One point of nDCG@10: the most that the choice should lose with other such questions."""
ALLOWED = POINT / 2
"""The largest loss accepted with these questions, so that the loss with others stays below a point.
Another way of cutting or another instruction has to gain as much."""


@dataclass(frozen=True)
class Measured:
    """A setting and what was measured.

    Attributes:
        setting: The setting.
        scores: ``MEASURES`` of each question, float64 of shape (questions, 3).
        tokens: Tokens to embed all passages, as estimated; 0 without vectors.
        bytes: Size of the index: vectors and keywords, without the texts.
        passages: Number of passages.
        seconds: Median time to search for one question, its embedding not included.
        read: For each question, 1 if its answer is in the first passages that have at most
            ``READ`` characters together, else 0; float64 of shape (questions,).
    """

    setting: Setting
    scores: Floats
    tokens: int
    bytes: int
    passages: int
    seconds: float
    read: Floats

    @property
    def quality(self) -> Floats:
        """nDCG@10 of each question, shape (questions,)."""
        return self.scores[:, 0]

    @property
    def mean(self) -> float:
        """Mean nDCG@10."""
        return float(self.quality.mean())


@dataclass(frozen=True)
class Options:
    """What may be tried.

    Attributes:
        sizes: Sizes of vectors, largest first.
        lengths: Most characters of a passage.
        overlaps: Overlaps, as a share of the length.
        headings: Whether to try passages without the headings above them.
        query_instructions: Texts to put in front of each query.
        document_instructions: Texts to put in front of each passage.
        hybrid: Whether to try keywords, alone and together with vectors.
        storages: Formats of vectors to compare.
    """

    sizes: tuple[int, ...]
    lengths: tuple[int, ...] = (400, 800, 1600)
    overlaps: tuple[float, ...] = (0.125,)
    headings: bool = True
    query_instructions: tuple[str, ...] = ()
    document_instructions: tuple[str, ...] = ()
    hybrid: bool = True
    storages: tuple[Storage, ...] = STORAGES

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods to try."""
        return METHODS if self.hybrid else ("vectors",)


@dataclass(frozen=True)
class Stage:
    """Settings to be measured together.

    Attributes:
        name: What they vary, for a reader.
        settings: The settings that were not measured before.
        paid: Whether they may need vectors that were not embedded before.
    """

    name: str
    settings: tuple[Setting, ...]
    paid: bool = True


Search = Generator[Stage, Sequence[Measured], None]
"""Yields stages, and is sent what was measured, which may be fewer settings."""


def search(first: Setting, options: Options, bootstrap: Bootstrap) -> Search:
    """Try one dimension of choice after the other, from ``first``, which has the largest size.

    Stages that could only raise the score are left out once the best setting is within one point
    of a perfect score: no gain would be measurable.
    """
    measured = list((yield Stage("method", _methods([first], options))))
    if not measured:
        return
    current = _usable(measured)[0].setting
    for name, vary in _VARIED:
        others = [
            setting for setting in dict.fromkeys(vary(current, options)) if setting != current
        ]
        best = max(_of_length(measured, current.cutting.characters), key=lambda item: item.mean)
        if not others or 1 - best.mean <= POINT:
            continue
        measured += yield Stage(name, _new(_methods(others, options), measured))
        if vary is _lengths:
            characters = best_length(measured, bootstrap)
            current = replace(current, cutting=replace(current.cutting, characters=characters))
        else:
            current = _winner(current, _of_length(measured, current.cutting.characters), bootstrap)
    sized = [replace(current, dimensions=size) for size in options.sizes]
    measured += yield Stage("size", _new(_methods(sized, options), measured), paid=False)
    chosen = choose(measured, bootstrap).setting
    stored = tuple(replace(chosen, storage=storage) for storage in options.storages)
    if stored := _new(stored, measured):
        yield Stage("storage", stored, paid=False)


def drive(stages: Search, measure: Callable[[Stage], Sequence[Measured]]) -> list[Measured]:
    """Measure every stage, and return all that was measured."""
    found: list[Measured] = []
    try:
        stage = next(stages)
        while True:
            rows = measure(stage)
            found += rows
            stage = stages.send(rows)
    except StopIteration:
        return found


def _methods(settings: Sequence[Setting], options: Options) -> tuple[Setting, ...]:
    return tuple(
        dict.fromkeys(item.with_method(method) for item in settings for method in options.methods)
    )


def _new(settings: Sequence[Setting], measured: Sequence[Measured]) -> tuple[Setting, ...]:
    known = {item.setting for item in measured}
    return tuple(item for item in settings if item not in known)


def _usable(measured: Sequence[Measured]) -> list[Measured]:
    return [item for item in measured if item.setting.usable]


def _of_length(measured: Sequence[Measured], characters: int) -> list[Measured]:
    return [item for item in measured if item.setting.cutting.characters == characters]


def best_length(measured: Sequence[Measured], bootstrap: Bootstrap) -> int:
    """Return the length of passages with which the same amount of text holds most answers.

    nDCG@10 would always favour long passages: ten of them are more to read. The length of the
    first setting stays, unless another is certainly better.
    """
    first, best = measured[0].setting, readings(measured)
    own = best[first.cutting.characters]
    other = max(best.values(), key=lambda item: item.read.mean())
    if bootstrap.interval(other.read - own.read).low > 0:
        return other.setting.cutting.characters
    return first.cutting.characters


def readings(measured: Sequence[Measured]) -> dict[int, Measured]:
    """Return the setting that represents each length of passages in the comparison.

    It differs from the first setting only in length and method; the method with more answers in the
    first ``READ`` characters counts.
    """
    first = replace(measured[0].setting, method="vectors")
    best: dict[int, Measured] = {}
    for item in _usable(measured):
        characters = item.setting.cutting.characters
        moved = replace(first, cutting=replace(first.cutting, characters=characters))
        if replace(item.setting, method="vectors") == moved:
            ahead = best.get(characters, item)
            best[characters] = max(ahead, item, key=lambda item: item.read.mean())
    return best


def _winner(current: Setting, measured: Sequence[Measured], bootstrap: Bootstrap) -> Setting:
    """Return what to continue with: the same as before, unless something else is clearly better."""
    same = replace(current, method="vectors")
    kept = [item for item in measured if replace(item.setting, method="vectors") == same]
    best = max(_usable(measured), key=lambda item: item.mean)
    ahead = max(_usable(kept), key=lambda item: item.mean)
    if _as_good(ahead, best, bootstrap):
        return current
    return replace(best.setting, method="vectors")


def _lengths(current: Setting, options: Options) -> list[Setting]:
    return [
        replace(current, cutting=replace(current.cutting, characters=length))
        for length in options.lengths
    ]


def _queries(current: Setting, options: Options) -> list[Setting]:
    return [replace(current, query_instruction=text) for text in options.query_instructions]


def _headings(current: Setting, options: Options) -> list[Setting]:
    cutting = current.cutting
    if not options.headings:
        return []
    return [replace(current, cutting=replace(cutting, headings=not cutting.headings))]


def _overlaps(current: Setting, options: Options) -> list[Setting]:
    cutting = current.cutting
    return [
        replace(current, cutting=replace(cutting, overlap=round(share * cutting.characters)))
        for share in options.overlaps
    ]


def _documents(current: Setting, options: Options) -> list[Setting]:
    return [replace(current, document_instruction=text) for text in options.document_instructions]


_VARIED: tuple[tuple[str, Callable[[Setting, Options], list[Setting]]], ...] = (
    ("passage length", _lengths),
    ("query instruction", _queries),
    ("headings", _headings),
    ("overlap", _overlaps),
    ("document instruction", _documents),
)


def possible_cuttings(first: Cutting, options: Options) -> dict[str, list[list[Cutting]]]:
    """Return, for each stage that cuts again, what it may have to embed: one list per case."""
    base = Setting(first, options.sizes[0])
    lengths = [item.cutting for item in dict.fromkeys([base, *_lengths(base, options)])]
    other = [
        [item.cutting for item in _headings(replace(base, cutting=cutting), options)]
        for cutting in lengths
    ]
    overlapping = [
        [item.cutting for item in _overlaps(replace(base, cutting=cutting), options)]
        for cutting in lengths
    ]
    return {
        "method": [[first]],
        "passage length": [[cutting for cutting in lengths if cutting != first]],
        "headings": other,
        "overlap": overlapping,
    }


# -- choosing ------------------------------------------------------------------------------------


def difference(item: Measured, best: Measured, bootstrap: Bootstrap, column: int = 0) -> Interval:
    """Return how much better ``item`` is than ``best``, paired by question."""
    return bootstrap.interval(item.scores[:, column] - best.scores[:, column])


def _as_good(item: Measured, best: Measured, bootstrap: Bootstrap) -> bool:
    if item.mean >= best.mean:
        return True
    apart = difference(item, best, bootstrap)
    return apart.value >= -ALLOWED and apart.includes_zero


def best_of(measured: Sequence[Measured], bootstrap: Bootstrap) -> Measured:
    """Return the usable setting with the highest mean nDCG@10; of several, the smallest.

    Only among those with passages of the best length: see `best_length`.
    """
    fit = _usable(_of_length(measured, best_length(measured, bootstrap)))
    return max(fit, key=lambda item: (item.mean, *(-part for part in _price(item))))


def choose(measured: Sequence[Measured], bootstrap: Bootstrap) -> Measured:
    """Return the smallest and cheapest usable setting that is not measurably worse than the best.

    Its mean nDCG@10 is at most half a point lower, and the interval of the difference includes 0.
    """
    best = best_of(measured, bootstrap)
    fit = _usable(_of_length(measured, best.setting.cutting.characters))
    good = [item for item in fit if _as_good(item, best, bootstrap)]
    return min(good, key=_price)


def _price(item: Measured) -> tuple[Any, ...]:
    return (item.bytes, item.tokens, item.setting.query_instruction is not None)
