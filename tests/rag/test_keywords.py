"""The keyword baseline is fair: it has stems, stop words, split names and Chinese words."""

from __future__ import annotations

from nexusflow_integrations.cli.rag.corpus import Document
from nexusflow_integrations.cli.rag.keywords import Keywords

DOCUMENTS = [
    Document("difflib.unified_diff: Compare two sequences of lines.", "difflib.unified_diff"),
    Document("time.sleep: Delay execution for a given number of seconds.", "time.sleep"),
    Document("小熊猫生活在山里，主要吃竹子。", "zoo.md:1"),
    Document("北京是中国的首都。", "zoo.md:3"),
]


def names(question: str, k: int = 3) -> list[str]:
    return [item.source for item in Keywords(DOCUMENTS).search(question, k)]


def test_words_match_by_their_stem() -> None:
    assert names("comparing a sequence") == ["difflib.unified_diff"]


def test_parts_of_a_name_match() -> None:
    assert names("unified") == ["difflib.unified_diff"]


def test_chinese_matches_by_words() -> None:
    assert names("谁吃竹子？") == ["zoo.md:1"]
    assert names("中国的首都") == ["zoo.md:3"]


def test_nothing_in_common_finds_nothing() -> None:
    assert names("怎样打乱列表") == []
    assert names("xylophone") == []
    assert names("the of and") == []
    assert names("?!") == []


def test_more_than_there_are_is_no_error_and_scores_fall() -> None:
    found = Keywords(DOCUMENTS).search("compare lines for seconds of delay", 50)
    assert {item.source for item in found} == {"time.sleep", "difflib.unified_diff"}
    assert found[0].score >= found[1].score > 0
