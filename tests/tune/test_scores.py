"""Scores follow their definitions, and intervals cover the mean of as many other questions."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("ir_measures", reason="comes with the extra `tune`")

from nexusflow_integrations.tune.scores import MEASURES, Bootstrap, judge, tellable


def test_scores_are_those_of_the_definitions() -> None:
    ranked = [["a", "b", "c"], ["x", "b", "y"], ["x", "y"], ["c", "a"]]
    scores = judge(ranked, [{"a"}, {"b"}, {"z"}, {"a", "b"}])
    assert MEASURES == ("nDCG@10", "recall@5", "hit@1")
    second = 1 / np.log2(3)
    expected = [
        [1, 1, 1],
        [second, 1, 0],
        [0, 0, 0],
        [second / (1 + second), 0.5, 0],
    ]
    assert np.allclose(scores, expected)


def test_a_question_whose_answer_is_in_no_passage_scores_nothing() -> None:
    assert judge([["a"], ["b"]], [set(), {"b"}])[:, 0].tolist() == [0, 1]
    assert judge([["a"]], [set()]).tolist() == [[0, 0, 0]]


def test_a_name_that_was_found_twice_counts_once_at_its_first_place() -> None:
    assert np.allclose(judge([["x", "a", "a"]], [{"a"}]), [[1 / np.log2(3), 1, 0]])


def test_names_keep_their_order_whatever_they_are() -> None:
    # trec_eval orders equal scores by name.
    assert judge([["a", "z"]], [{"a"}])[0, 2] == 1
    assert judge([["z", "a"]], [{"z"}])[0, 2] == 1


def test_a_name_that_is_not_utf8_is_judged_and_does_not_crash_the_process() -> None:
    ranked = [["caf\udce9.md", "caf\udce8.md", ""]]
    assert judge(ranked, [{"caf\udce9.md"}])[0].tolist() == [1, 1, 1]
    assert judge(ranked, [{"caf\udce8.md"}])[0, 2] == 0


@pytest.mark.parametrize("questions", [12, 150])
def test_the_interval_covers_the_mean_of_as_many_other_questions(questions: int) -> None:
    random = np.random.default_rng(7)
    bootstrap = Bootstrap(questions)
    drawn = random.beta(0.5, 0.4, (1000, 2, questions))
    found = [bootstrap.interval(scores) for scores in drawn[:, 0]]
    there = drawn[:, 1].mean(axis=1)
    covered = np.mean(
        [item.low <= mean <= item.high for item, mean in zip(found, there, strict=True)]
    )
    assert 0.92 <= covered <= 0.98


def test_no_interval_is_wider_than_what_is_possible() -> None:
    bootstrap = Bootstrap(3)
    apart = bootstrap.interval(np.array([1.0, -1.0, 0.0]))
    assert (apart.low, apart.high) == (-1, 1)
    score = bootstrap.interval(np.array([1.0, 0.0, 1.0]), lowest=0.0)
    assert (score.low, score.high) == (0, 1)


def test_settings_that_score_alike_on_every_question_do_not_differ() -> None:
    found = Bootstrap(50).interval(np.zeros(50))
    assert (found.value, found.low, found.high) == (0, 0, 0)
    assert found.includes_zero


def test_four_times_the_questions_show_half_the_difference() -> None:
    assert tellable(400) == pytest.approx(tellable(100) / 2)
