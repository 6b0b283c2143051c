"""Cutting text loses no word and passes no limit."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexusflow_integrations.cli.rag.passages import (
    PATH_CHARACTERS,
    cut,
    cut_in_lines,
    first_part,
    sentences,
)
from nexusflow_integrations.cli.rag.structure import KINDS, blocks


def test_sentences_end_at_stops_of_english_and_chinese() -> None:
    assert sentences("One is here. Two? 四在这里。五呢？六") == [
        "One is here.",
        "Two?",
        "四在这里。",
        "五呢？",
        "六",
    ]


def test_a_closing_quote_stays_with_its_sentence() -> None:
    assert sentences("He said “Stop!” Then he left. 他说：“停！”然后走了。") == [
        "He said “Stop!”",
        "Then he left.",
        "他说：“停！”",
        "然后走了。",
    ]


def test_an_empty_line_ends_a_sentence_and_a_line_break_does_not() -> None:
    assert sentences("A title\n\nIt goes\non here.") == ["A title", "It goes on here."]


@pytest.mark.parametrize(
    "text", ["Pi is 3.14 or so.", "A tool, e.g. a saw.", "That is, i.e. this."]
)
def test_not_every_full_stop_ends_a_sentence(text: str) -> None:
    assert sentences(text) == [text]


@pytest.mark.parametrize(
    "text",
    [
        "Die Frist endet am 31. März 2027.",
        "Am 31. 12. 2027 ist Schluss.",
        "Im 19. Jahrhundert stand hier ein Haus.",
        "Sie tagt jeden 2. Mittwoch, vom 3. bis 5. Mai nicht.",
        "Dr. Müller ist der Betriebsarzt.",
        "Obst, z. B. Äpfel oder z.B. Birnen, bzw. Gemüse.",
        "Siehe § 5 Abs. 3 und Art. 7 im BGB.",
        "The office is at 12 St. James Road.",
        "Smith lives at No. 5.",
        "Mrs. J. R. Smith joined the U.S. Army on Dec. 3.",
        "Apples (pears, etc.) are sold here.",
        "He came on the 3. May.",
        "Geschlossen: 30./31. Mai, 1.-3. Juni, 09. Juli.",
        "1. Open the door.",
    ],
)
def test_an_abbreviation_or_an_ordinal_does_not_end_a_sentence(text: str) -> None:
    assert sentences(f"{text} Then it rains. {text}") == [text, "Then it rains.", text]


@pytest.mark.parametrize(
    ("text", "second"),
    [
        ("I have 3. He has 4.", "He has 4."),
        ("Er zahlte 31. Der Rest ist offen.", "Der Rest ist offen."),
        ("It opened in 2027. Nobody came.", "Nobody came."),
        ("It opened in 2027. May was warm.", "May was warm."),
        ("It costs 50. May I ask?", "May I ask?"),
        ("This is version 1.2. May it work.", "May it work."),
        ("Is it open? No. It is closed.", "No."),
        ("Er heißt Jan. Sie heißt Eva.", "Sie heißt Eva."),
        ("我有 3. 他有 4.", "他有 4."),
        ("我有3。他有4。", "他有4。"),
    ],
)
def test_a_number_or_a_short_word_may_end_a_sentence(text: str, second: str) -> None:
    assert sentences(text)[1] == second


def test_the_first_part_is_whole_sentences() -> None:
    assert first_part("First one. Second one. Third one.", 24) == "First one. Second one."
    assert first_part("A single sentence that goes on and on", 20) == "A single sentence"
    assert first_part("", 20) == ""


def test_a_heading_begins_a_passage_and_stands_before_each_under_it() -> None:
    text = "# Zoo\n\n" + "\n\n".join(f"Paragraph {n} is about animals." for n in range(6))
    found = list(cut(text, 80))
    assert all(passage.startswith("Zoo\n\n") for _, passage in found)
    assert [line for line, _ in found] == [3, 7, 11]


def test_a_heading_glued_to_its_paragraph_is_a_heading() -> None:
    assert list(cut("## Food\nBamboo.")) == [(2, "Food\n\nBamboo.")]


def test_a_paragraph_that_is_too_long_is_cut_after_a_sentence() -> None:
    found = [passage for _, passage in cut("One two three. " * 20, 100)]
    assert all(passage.endswith("three.") for passage in found)
    assert all(len(passage) <= 100 for passage in found)


def lines_and_titles(text: str, kind: str) -> list[tuple[int, str]]:
    return [
        (line, passage.partition("\n\n")[0])
        for line, passage in cut(text, kind=kind)
        if "\n\n" in passage
    ]


RST = """\
=====
 Zoo
=====

A place for animals.

Pandas
======

They climb trees.

Food
----

Bamboo::

    Not a title
    -----------

:ref:`Otters <otter>` and ``code``
==================================

They swim.
"""


def test_titles_of_restructuredtext_are_headings_in_the_order_of_their_adornments() -> None:
    assert list(cut(RST, kind="rst")) == [
        (5, "Zoo\n\nA place for animals."),
        (10, "Zoo > Pandas\n\nThey climb trees."),
        (15, "Zoo > Pandas > Food\n\nBamboo::\n\n    Not a title\n    -----------"),
        (23, "Zoo > Otters and ``code``\n\nThey swim."),
    ]


@pytest.mark.parametrize("between", ["\n", "\n\n", "\n\n\n", "\n.. note\n\n"])
def test_titles_of_one_adornment_have_one_level_whatever_is_before_them(between: str) -> None:
    text = (
        f"Notes\n=====\n{between}Version 2\n---------\n\nNew.\n\n\nVersion 1\n---------\n\nOld.\n"
    )
    found = [block for block in blocks(text, "rst") if block.level]
    assert [(block.level, block.title) for block in found] == [
        (1, "Notes"),
        (2, "Version 2"),
        (2, "Version 1"),
    ]


def test_a_table_or_a_transition_is_not_a_title() -> None:
    text = "One\n\n----\n\n=====  ====\nName   Food\n=====  ====\npanda  tree\n=====  ====\n"
    assert len(list(cut(text, kind="rst"))) == 1
    assert [block.level for block in blocks(text, "rst")] == [0, 0, 0]


def test_a_comment_in_a_code_fence_is_not_a_heading() -> None:
    text = "# Setup\n\n```sh\n# install it\n\n## twice\npip install x\n```\n\nDone.\n"
    assert list(cut(text)) == [(3, "Setup\n\n" + text.partition("\n\n")[2].rstrip())]


def test_the_path_of_headings_stands_before_a_passage() -> None:
    text = "# A\n\n## B\n\n### C *d* [e](f)\n\none\n\n## G\n\ntwo\n\nH\n===\n\nthree\n"
    assert list(cut(text)) == [
        (7, "A > B > C d e\n\none"),
        (11, "A > G\n\ntwo"),
        (16, "H\n\nthree"),
    ]
    assert [passage for _, passage in cut(text, headings=False)] == ["one", "two", "three"]


def test_the_outer_headings_of_a_long_path_are_left_out_first() -> None:
    names = ["Things to know about animals", "Red pandas and others", "Where they live"]
    text = "".join(f"{'#' * level} {name}\n\n" for level, name in enumerate(names, 1))
    below = " > ".join(names[1:]) + "\n\nHere."
    assert list(cut(f"{text}Here.\n\n### Then\n\nThere.")) == [
        (7, f"{names[0]} > {below}"),  # each heading is in some passage
        (11, "Red pandas and others > Then\n\nThere."),
    ]
    # The path stands in the passage below it.
    text = text.replace(names[0], "Animals").replace(names[1], "Pandas")
    assert list(cut(f"{text}Here.")) == [(7, "Animals > Pandas > Where they live\n\nHere.")]


@pytest.mark.parametrize("word", ["heading ", "a", "熊猫"])
def test_a_heading_that_is_too_long_is_whole_once_and_then_cut_after_a_word(word: str) -> None:
    for more in range(5, 60):
        title = f"{'x' * (more % 8)} {word * more}".strip()
        found = [passage for _, passage in cut(f"# {title}\n\n{'Here it is. ' * 100}")]
        assert all(len(passage) <= 800 for passage in found)
        if len(title) > 400:
            assert found[0] == title
            found = found[1:]
        else:
            assert found[0].startswith(f"{title}\n\nHere")
            found = found[2:]  # the first passage may hold less text
        for passage in found:
            head, _, body = passage.partition("\n\n")
            assert body.startswith("Here it is.")
            assert len(head) <= PATH_CHARACTERS
            if len(title) > PATH_CHARACTERS:
                assert head.endswith(" …")
                assert word != "heading " or head.endswith(" heading …")


@pytest.mark.parametrize("headings", [True, False])
def test_a_heading_with_nothing_below_it_is_a_passage(headings: bool) -> None:
    def found(text: str, kind: str = "md") -> list[tuple[int, str]]:
        return list(cut(text, headings=headings, kind=kind))

    tasks = "* TODO Renew the passport\n** Policy QX-7731\n* DONE Call the plumber\n"
    under = "TODO Renew the passport > " if headings else ""
    assert found(tasks, "org") == [(2, f"{under}Policy QX-7731"), (3, "DONE Call the plumber")]
    under = "Plans > " if headings else ""
    assert found("# Plans\n\n## Move\n\n\n## Ask Maria\n") == [
        (3, f"{under}Move"),
        (6, f"{under}Ask Maria"),
    ]
    assert found("# A\n# B\n\nText.\n") == [(1, "A"), (4, "B\n\nText." if headings else "Text.")]
    assert found("One line\n========\n", "plain") == [(1, "One line")]
    assert found("#\n\n##\n") == []


def test_a_paragraph_that_is_marked_like_a_heading_is_not_lost() -> None:
    said = "The office is closed on Fridays. In an emergency call 555-0199 and use the side door."
    assert list(cut(f"{said}\n---\n\n### Next\n\nText.\n")) == [(6, f"{said} > Next\n\nText.")]
    assert list(cut(f"{said}\n-----\nAnn\n", kind="plain")) == [(3, f"{said}\n\nAnn")]
    assert list(cut(f"{said * 20}\n---\nAnn\n"))[-1][1].endswith(" …\n\nAnn")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.sampled_from([2, 7, 60]), st.sampled_from([0, 3, 90])),
        max_size=6,
    ),
    st.sampled_from([100, 200, 800]),
)
def test_each_heading_is_in_a_passage(parts: list[tuple[int, int, int]], most: int) -> None:
    text, words = "", iter(f"w{number}x" for number in range(10_000))
    wanted: list[str] = []
    for level, in_title, in_body in parts:
        title, body = ([next(words) for _ in range(size)] for size in (in_title, in_body))
        text += f"{'#' * level} {' '.join(title)}\n\n{' '.join(body)}\n\n"
        wanted += title + body
    found = list(cut(text, most))
    assert all(len(passage) <= most for _, passage in found)
    assert [line for line, _ in found] == sorted(line for line, _ in found)
    assert set(wanted) <= {word for _, passage in found for word in passage.split()}


def test_front_matter_is_no_passage_and_its_title_is_the_heading_of_a_text_without_one() -> None:
    assert list(cut("---\ntitle: Zoo\n---\n# Pandas\n\nClimb.\n")) == [(6, "Pandas\n\nClimb.")]
    text = "---\nlayout: page\ntitle: 'The zoo'\ntags: [a]\n---\nOpen.\n\n## Pandas\n\nClimb.\n"
    assert list(cut(text)) == [(6, "The zoo\n\nOpen."), (10, "The zoo > Pandas\n\nClimb.")]
    assert list(cut("---\nlayout: page\n---\nOpen.\n")) == [(4, "Open.")]
    assert list(cut("---\nlayout: page\n---\n")) == []
    assert list(cut("---\ntitle: Only\n---")) == []
    assert list(cut("---\n---\nOpen.\n\n---\n\nX\n")) == [(3, "Open.\n\n---\n\nX")]
    text = '+++\ntitle = "The zoo"\ndate = 2026-01-01\n[params]\na = """\n+"""\n+++\nOpen.\n'
    assert list(cut(text)) == [(8, "The zoo\n\nOpen.")]
    assert list(cut("+++\n+++\nOpen.\n")) == [(3, "Open.")]


@pytest.mark.parametrize(
    ("front", "title"),
    [
        ("title: >\n  A\n  zoo", "A zoo"),
        ("title: Zoo # new", "Zoo"),
        ("title: 'It''s'", "It's"),
        ('title: "Say \\"hi\\""', 'Say "hi"'),
        ('title: ""', ""),
        ("title: 7", ""),
        ("params:\n  title: inner", ""),
    ],
)
def test_the_title_of_front_matter_is_read_as_yaml(front: str, title: str) -> None:
    ((_, passage),) = cut(f"---\n{front}\n---\nOpen.\n")
    assert passage == (f"{title}\n\nOpen." if title else "Open.")


@pytest.mark.parametrize(
    "text",
    [
        "---\n\nFirst paragraph.\n\n---\n\nSecond.\n",
        "---\n\nWords of intro\n...\nand more.\n",
        "---\n[[[[\n---\nSecond.\n",
        "---\n" + "[" * 5000 + "\n---\nSecond.\n",
        "---\nnever: ends\n\nSecond.\n",
        "+++\nWords of intro\n+++\nand more.\n",
        "+++\na = " + "[" * 5000 + "\n+++\nSecond.\n",
        "+++\na = 1\n---\nSecond.\n",
    ],
)
def test_a_thematic_break_at_the_beginning_hides_nothing(text: str) -> None:
    found = "".join("".join(passage.split()) for _, passage in cut(text))
    assert found.endswith("".join(text.split())[3:].rpartition("---")[2])
    assert text[4:20].split()[0] in found


def test_imports_and_exports_at_the_beginning_of_mdx_are_no_passage() -> None:
    module = "import Tabs from '@theme/Tabs'\nimport {\n  Item,\n} from 'x'\n\nexport const a = 1\n"
    text = f"---\ntitle: Zoo\n---\n\n{module}\nOpen.\n\nimport nothing\n"
    assert list(cut(text, kind="mdx")) == [(12, "Zoo\n\nOpen.\n\nimport nothing")]
    assert list(cut(f"{module}# Zoo\n\nOpen.\n", kind="mdx")) == [(9, "Zoo\n\nOpen.")]
    assert list(cut(module, kind="mdx")) == []
    assert list(cut("important words\n", kind="mdx")) == [(1, "important words")]
    for text in ("import fees apply to all goods.", "export controls are strict."):
        assert list(cut(f"{text}\n\nMore.\n", kind="mdx")) == [(1, f"{text}\n\nMore.")]
    for line in (
        "import './a.css'",
        'import A, { b as c } from "x";',
        "export { a }",
        "export * from 'a'",
    ):
        assert list(cut(f"{line}\n\nMore.\n", kind="mdx")) == [(3, "More.")]
    assert list(cut("import a key\n", kind="md")) == [(1, "import a key")]


def test_each_piece_of_a_long_paragraph_cites_its_own_line() -> None:
    sentence = "Pandas climb the {} tree."
    text = "\n".join(sentence.format(number) for number in range(100, 200))
    found = list(cut(text, 120))
    assert len(found) == 25
    for line, passage in found:
        assert passage.startswith(sentence.format(99 + line))


def test_code_is_cut_at_the_ends_of_lines() -> None:
    code = "".join(f"print('a. b {number}')\n" for number in range(40))
    found = [passage for _, passage in cut(f"```python\n{code}```\n", 200)]
    assert len(found) > 3
    assert all(passage.endswith(("')", "```")) for passage in found)


def test_passages_overlap_by_whole_sentences_if_asked() -> None:
    text = " ".join(f"Sentence number {number}." for number in range(10, 50))
    found = [passage for _, passage in cut(text, 200, overlap=45)]
    assert all(len(passage) <= 200 for passage in found)
    for before, after in pairwise(found):
        repeated = after[: len("Sentence number 10.") * 2 + 1]
        assert before.endswith(repeated)


def test_headings_of_asciidoc_and_org_are_seen_and_those_in_listings_are_not() -> None:
    assert lines_and_titles("= Zoo\n\n== Food\n\nGood.\n\n----\n== no\n----\n", "adoc") == [
        (5, "Zoo > Food")
    ]
    assert lines_and_titles("* Zoo  :tag:\n** Food\n*Bold* and good.\n", "org") == [
        (3, "Zoo > Food")
    ]


def test_classes_and_functions_of_python_are_sections_with_their_comments() -> None:
    text = (
        '"""About pandas."""\n\nimport os\n\n# What eats.\n@decorated\nclass Panda:\n'
        '    """Eats."""\n\n    def climb(self):\n        return 1\n\n\nNAME = "x"\n'
    )
    assert list(cut(text, kind="py")) == [
        (1, '"""About pandas."""\n\nimport os'),
        (5, 'Panda\n\n# What eats.\n@decorated\nclass Panda:\n    """Eats."""'),
        (10, "Panda > climb\n\n    def climb(self):\n        return 1"),
        (14, 'NAME = "x"'),
    ]
    assert list(cut("def broken(:\n", kind="py")) == [(1, "def broken(:")]


def test_lines_that_end_as_on_windows_are_counted_the_same() -> None:
    assert list(cut(RST.replace("\n", "\r\n"), kind="rst")) == list(cut(RST, kind="rst"))


@settings(max_examples=200, deadline=None)
@given(
    st.text(st.sampled_from("ab .。!?\n#汉字-=*`"), max_size=400),
    st.integers(min_value=20, max_value=120),
    st.sampled_from([0, 30]),
    st.sampled_from(sorted(KINDS)),
)
def test_no_passage_is_empty_or_too_long_and_no_letter_is_lost(
    text: str, most: int, overlap: int, kind: str
) -> None:
    found = list(cut(text, most, overlap, kind=kind))
    assert all(passage.strip() and len(passage) <= most for _, passage in found)
    lines = [line for line, _ in found]
    assert lines == sorted(lines)
    rows = text.split("\n")
    for block in blocks(text, kind):
        if block.level:
            rows[block.line : block.body] = [""] * (block.body - block.line)
    letters = sorted(char for char in "".join(rows) if char in "ab汉字")
    kept = "".join(passage for _, passage in found)
    assert all(kept.count(char) >= letters.count(char) for char in set(letters))


@pytest.mark.parametrize("text", ["x" * 5000, "汉" * 5000])
def test_text_without_any_blank_is_cut_all_the_same(text: str) -> None:
    found = [passage for _, passage in cut(text, 800)]
    assert "".join(found) == text
    assert max(map(len, found)) <= 800


def test_each_heading_is_in_the_lines_of_the_passage_below_it() -> None:
    text = f"# {'Zoo ' * 30}\n\n## {'Pandas ' * 9}\n\n### Food\n\nBamboo.\n\n## Bears\n\nHoney.\n"
    found = [(one.first, one.line, one.last) for one in cut_in_lines(text, 200)]
    assert found == [(1, 1, 1), (3, 7, 7), (9, 11, 11)]
