"""A keyword search splits a text into words, and rankings are joined."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("bm25s", reason="the extra hybrid")
pytest.importorskip("Stemmer", reason="the extra hybrid")
pytest.importorskip("rjieba", reason="the extra hybrid")

from nexusflow_integrations._core import keywords
from nexusflow_integrations.keywords import fused, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The pandas are Running", ["panda", "run"]),
        ("a_snake_case name", ["snake", "case", "name"]),
        ("Form QX-7731, x86", ["form", "qx", "7731", "x86"]),
        ("数据库里保存着向量。", ["数据库", "里", "保存", "着", "向量"]),
        ("用Python写", ["用", "python", "写"]),
        ("猫", ["猫"]),
        ("ひらがな", ["ひら", "らが", "がな"]),
        ("한국어", ["한국", "국어"]),
        ("?! 。", []),
        ("", []),
        ("Größe naïve", ["größe", "naïv"]),
        ("Gro\u0308ße nai\u0308ve", ["größe", "naïv"]),
        ("Donau\u00addampf", ["donaudampf"]),
        ("ﬁnd the ﬂower", ["find", "flower"]),
        ("ＡＰＩ２ ｶﾀ", ["api2", "カタ"]),
        ("Acme™ Acme®", ["acm", "acm"]),
        ("İzmir", ["izmir"]),
        ("\u1112\u1161\u11ab국어", ["한국", "국어"]),
        ("हिन्दी भाषा।", ["हिन्दी", "भाषा"]),
        ("مُحَمَّد", ["محمد"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_bold_letters_of_mathematics_are_like_others() -> None:
    assert words_of("𝐇𝐞𝐥𝐥𝐨 ℋello") == words_of("Hello hello")


def test_in_a_notebook_without_ipywidgets_nothing_warns_about_bars() -> None:
    code = """
import sys, types
for name in ("ipykernel.zmqshell", "IPython"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["IPython"].get_ipython = lambda: None
sys.modules["ipywidgets"] = None
from nexusflow_integrations.keywords import words_of
words_of("a panda")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_text_and_a_question_meet_in_another_form_of_the_word() -> None:
    assert set(words_of("Which documents were removed?")) & set(words_of("Removing a document"))


def test_rankings_are_joined_by_their_ranks() -> None:
    joined = fused([["a", "b", "c"], ["c", "a", "d"]])
    assert [name for name, _ in joined] == ["a", "c", "b", "d"]
    assert dict(joined) == {
        "a": 1 / 61 + 1 / 62, "c": 1 / 63 + 1 / 61, "b": 1 / 62, "d": 1 / 63,
    }  # fmt: skip


def test_a_smaller_constant_gives_first_ranks_more_weight() -> None:
    rankings = [["a", "b"], ["c", "b"]]
    assert fused(rankings, k=60)[0][0] == "b"
    assert [name for name, _ in fused(rankings, k=0)] == ["a", "b", "c"]


def test_of_equals_the_one_that_came_first_is_first() -> None:
    assert [name for name, _ in fused([["a"], ["b"]])] == ["a", "b"]
    assert fused([]) == []
    assert fused([[], []]) == []


@pytest.mark.parametrize("package", ["bm25s", "Stemmer", "rjieba"])
def test_a_missing_package_is_named_with_what_to_install(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    keywords._tools.cache_clear()
    with pytest.raises(ImportError, match=rf"{package}.*nexusflow-integrations\[hybrid\]"):
        words_of("a text")
