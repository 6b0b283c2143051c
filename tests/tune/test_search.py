"""The stages have the right order, and the choice follows its rule."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from nexusflow_integrations import Usage
from nexusflow_integrations.tune import Answer, Question, TuneResult
from nexusflow_integrations.tune.scores import Bootstrap
from nexusflow_integrations.tune.search import (
    Measured,
    Options,
    Stage,
    best_length,
    best_of,
    choose,
    drive,
    search,
)
from nexusflow_integrations.tune.settings import Cutting, Setting

_QUESTIONS = 400
_BOOTSTRAP = Bootstrap(_QUESTIONS)
_OPTIONS = Options((2048, 1024, 64), query_instructions=("ask: ",))
_FIRST = Setting(Cutting(), 2048)
_NOISE = np.random.default_rng(1).normal(0, 0.1, (_QUESTIONS, 1))


def _measured(
    setting: Setting, mean: float, own_noise: float = 0.0, reads: float | None = None
) -> Measured:
    random = np.random.default_rng([*f"{setting}{setting.query_instruction}".encode()])
    noise = _NOISE + own_noise * random.normal(size=(_QUESTIONS, 1))
    scores = np.repeat(mean + noise - noise.mean(), 3, axis=1)
    passages = 800_000 // setting.cutting.characters
    size = max(1, setting.dimensions) * passages
    read = scores[:, 0] if reads is None else reads + 0 * scores[:, 0]
    return Measured(setting, scores, 1000, size, passages, 0.001, read)


def _run(mean: Callable[[Setting], float], options: Options = _OPTIONS) -> list[Stage]:
    stages = []

    def measure(stage: Stage) -> list[Measured]:
        stages.append(stage)
        return [_measured(setting, mean(setting), own_noise=0.1) for setting in stage.settings]

    drive(search(_FIRST, options, _BOOTSTRAP), measure)
    return stages


def test_each_stage_varies_one_thing_of_the_setting_that_won() -> None:
    def mean(setting: Setting) -> float:
        return 0.7 + 0.1 * (setting.cutting.characters == 400) - 0.05 * (setting.dimensions < 2048)

    stages = {stage.name: stage.settings for stage in _run(mean)}
    assert list(stages) == [
        *("method", "passage length", "query instruction", "headings", "overlap"),
        *("size", "storage"),
    ]
    assert {item.cutting.characters for item in stages["passage length"]} == {400, 1600}
    for name in ("query instruction", "headings", "overlap", "size", "storage"):
        assert {item.cutting.characters for item in stages[name]} == {400}, name
    assert {item.cutting.overlap for item in stages["overlap"]} == {50}
    assert {item.dimensions for item in stages["size"]} == {1024, 64}
    assert {item.storage for item in stages["storage"]} == {"int8", "binary"}


def test_nothing_is_measured_twice() -> None:
    settings = [item for stage in _run(lambda _: 0.5) for item in stage.settings]
    assert len(settings) == len(set(settings))


def test_long_passages_do_not_win_by_being_more_to_read() -> None:
    def measured(characters: int, mean: float, reads: float) -> Measured:
        return _measured(Setting(Cutting(characters), 2048), mean, reads=reads)

    found = [measured(800, 0.7, 0.8), measured(1600, 0.9, 0.75), measured(400, 0.6, 0.8)]
    assert choose(found, _BOOTSTRAP).setting.cutting.characters == 800
    found += [measured(200, 0.5, 0.85)]
    assert best_length(found, _BOOTSTRAP) == 200
    assert choose(found, _BOOTSTRAP).setting.cutting.characters == 200


def test_another_length_has_to_be_certainly_better() -> None:
    noisy = _measured(Setting(Cutting(400), 2048), 0.71, own_noise=1.0)
    found = [_measured(Setting(Cutting(), 2048), 0.7), noisy]
    assert best_length(found, _BOOTSTRAP) == 800


def test_without_a_clear_gain_the_defaults_stay() -> None:
    stages = _run(lambda setting: 0.7 + 0.004 * (setting.cutting.characters == 1600))
    assert {item.cutting.characters for item in stages[-1].settings} == {800}


def test_nothing_more_is_paid_for_once_nothing_can_win() -> None:
    stages = _run(lambda _: 0.995)
    assert [stage.name for stage in stages] == ["method", "size", "storage"]
    assert [stage.paid for stage in stages] == [True, False, False]


def test_a_stage_that_could_not_be_measured_changes_nothing() -> None:
    names = []

    def measure(stage: Stage) -> list[Measured]:
        names.append(stage.name)
        if stage.paid and len(names) > 1:
            return []
        return [_measured(setting, 0.6) for setting in stage.settings]

    found = drive(search(_FIRST, _OPTIONS, _BOOTSTRAP), measure)
    assert {item.setting.cutting for item in found} == {Cutting()}
    assert names[-1] == "storage"


def test_the_smallest_setting_that_is_not_measurably_worse_than_the_best_is_chosen() -> None:
    means = {2048: 0.80, 1024: 0.797, 512: 0.795, 256: 0.77, 64: 0.6}
    found = [
        _measured(Setting(Cutting(), size), mean, own_noise=0.1) for size, mean in means.items()
    ]
    assert best_of(found, _BOOTSTRAP).setting.dimensions == 2048
    assert choose(found, _BOOTSTRAP).setting.dimensions == 512


def test_a_small_but_significant_difference_counts() -> None:
    found = [_measured(Setting(Cutting(), size), mean) for size, mean in ((64, 0.795), (128, 0.8))]
    assert choose(found, _BOOTSTRAP).setting.dimensions == 128


def test_a_choice_with_few_questions_is_at_most_half_a_point_worse() -> None:
    found = [_measured(Setting(Cutting(), 2048), 0.8), _measured(Setting(Cutting(), 64), 0.75, 3.0)]
    assert choose(found, _BOOTSTRAP).setting.dimensions == 2048


def test_the_sentence_and_the_notes_compare_only_passages_of_the_chosen_length() -> None:
    long = Cutting(1600)
    found = [
        _measured(Setting(Cutting(), 1024), 0.8, reads=1.0),
        _measured(Setting(Cutting(), 64), 0.7, reads=1.0),
        _measured(Setting(Cutting(), 0, "keywords"), 0.6, reads=1.0),
        _measured(Setting(long, 1024), 0.9, reads=1.0),  # higher, and half of the passages
        _measured(Setting(long, 0, "keywords"), 0.81, reads=1.0),
    ]
    start, *_ = found
    result = TuneResult(
        questions=(Question("?", (Answer("a.md"),)),) * _QUESTIONS,
        made=False,
        measured=tuple(found),
        chosen=choose(found, _BOOTSTRAP, start.setting),
        start=start,
        model="a-model",
        cut_sizes=(),
        paid_sizes=(),
        skipped=(),
        left_out=0,
        predicted_tokens=0,
        usage=Usage(),
    )
    assert result.chosen is start
    assert result.sentence() == (
        "Take 1024, 800 characters: its nDCG@10 of 0.800 is the highest of the settings with"
        " passages of 800 characters that can be applied, and each of them with a smaller index"
        " scores measurably lower, or lower by more than half a point."
    )
    assert not any("Keywords alone" in note for note in result.notes())


def _few(scores: dict[int, list[float]]) -> tuple[list[Measured], Bootstrap]:
    found = [
        Measured(
            Setting(Cutting(), size),
            np.repeat([row], 3, axis=0).T,
            1,
            size,
            1,
            0,
            np.zeros(len(row)),
        )
        for size, row in scores.items()
    ]
    return found, Bootstrap(len(found[0].quality))


@pytest.mark.parametrize(
    "scores",
    [
        {2048: [1.0], 1024: [0.6], 64: [1.0]},
        {2048: [0.5] * 3, 1024: [0.5] * 3, 64: [0.6] * 3},
        {1024: [1] * 40, 128: [1] * 39 + [0.63], 64: [1] * 40},
        {2048: [1, 0, 0, 1, 1, 1, 0, 1], 1024: [1, 0, 1, 1, 1, 0, 1, 1], 128: [1] * 8},
    ],
)
def test_with_too_few_questions_the_start_stays(scores: dict[int, list[float]]) -> None:
    found, bootstrap = _few(scores)
    start = Setting(Cutting(), 1024)
    assert choose(found, bootstrap).setting != start
    assert choose(found, bootstrap, start).setting == start


def test_a_setting_that_is_measurably_better_replaces_the_start_with_few_questions() -> None:
    better = [1.0] * 11 + [0.0]
    found, bootstrap = _few({1024: [0.1, 0.3] * 6, 512: better, 256: better})
    assert choose(found, bootstrap, Setting(Cutting(), 1024)).setting.dimensions == 256


def test_the_start_is_measured_even_if_another_way_of_cutting_won() -> None:
    def measure(stage: Stage) -> list[Measured]:
        return [
            _measured(item, 0.7 + 0.1 * (item.cutting.characters == 400)) for item in stage.settings
        ]

    start = Setting(Cutting(), 1024)
    found = drive(search(_FIRST, _OPTIONS, _BOOTSTRAP, start), measure)
    assert [item.setting for item in found].count(start) == 1


@pytest.mark.parametrize("other", [{"storage": "binary"}, {"method": "keywords"}])
def test_a_setting_that_an_index_cannot_use_is_compared_and_not_chosen(
    other: dict[str, str],
) -> None:
    good = _measured(Setting(Cutting(), 64, **other), 0.9)  # type: ignore[arg-type]
    found = [_measured(Setting(Cutting(), 2048), 0.5), good]
    assert choose(found, _BOOTSTRAP).setting == Setting(Cutting(), 2048)
