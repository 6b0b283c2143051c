"""Cuts text into sentences, and into passages of whole paragraphs under their headings."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from nexusflow_integrations.cli.rag.structure import Block, blocks

PASSAGE_CHARACTERS = 800
"""Default length of a passage, in characters: enough for an answer, but only one topic."""

PATH_CHARACTERS = 50
"""Maximum characters of a path of headings; if it is longer, outer headings are left out.

In the Python tutorial, fewer answers are found with whole paths: see tests/benchmarks/cutting.py.
"""
CUT = " …"
"""The end of a path of headings that was cut because it was too long."""

_SENTENCE_END = re.compile(
    # English: a sentence ends at white space after a full stop and any closing quote or bracket.
    r"(?:(?<=[.!?])|(?<=[.!?][\"'”’)]))(?<!e\.g\.)(?<!i\.e\.)\s+"
    # Chinese: no white space follows.
    r"|(?<=[。！？])(?![”’）])|(?<=[。！？][”’）])"
)
# A sentence that is cut is worse than two that are joined, so these rules join in case of doubt.
# `cut` does not use them, so that the passages of existing indexes stay the same.
_ABBREVIATED = re.compile(
    r"(?<![^\W_])(?:[^\W\d_]"  # initials, z. B., U.S.
    r"|Dr|Prof|Dipl|Ing|Hr|Mr|Mrs|Ms|Messrs|St|Str|Jr|Sr|Rev|Gen|Capt|Mt|Tel|Mio|Mrd|Chr"
    r"|bzw|ca|vgl|inkl|exkl|zzgl|ggf|evtl|max|mind|usw|etc|vs|cf|al|approx"
    r")\.[\"'”’)]?$"
)
_NUMBERED = re.compile(
    r"(?<![^\W_])(?:No|Nos|Nr|Abs|Art|Abb|Tab|Kap|Ziff|Fig|Sec|Ch|Vol|Eq|pp"
    r"|Jan|Feb|Mar|Mär|Apr|Jun|Jul|Aug|Sept?|O[ck]t|Nov|De[cz])\.$"
)
_DIGITS = re.compile(r"\d\.$")
_ORDINAL = re.compile(
    # The number of an item, or a number after an article or preposition: "die 2. Liga".
    r"(?:^|\b(?:am|im|vom|zum|zur|beim|ab|bis|seit|d(?:er|ie|as|em|en|es)|jede[mnrs]?)\s)\d{1,3}\.$",
    re.IGNORECASE,
)
MONTH = (
    r"(?:J[aä]n(?:uary?|ner)?|Feb(?:ruary?)?|Mär(?:z)?|Mar(?:ch)?|Apr(?:il)?|Mai|May|Jun[ei]?"
    r"|Jul[iy]?|Aug(?:ust)?|Sept?(?:ember)?|O[ck]t(?:ober)?|Nov(?:ember)?|De[cz](?:ember)?)\b"
)
"""A pattern of the name of a month, in English or German."""
_MONTH = re.compile(MONTH)
_DAY = re.compile(r"(?<![\d.])(?:0?[1-9]|[12]\d|3[01])\.$")
_LONGEST_ABBREVIATION = 24
_EMPTY_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
_ITEM = re.compile(r"\n(?=[^\S\n]*(?:[-*+•]|\d{1,3}[.)])\s)")
_LINE_END = re.compile(r"\n")
_SPACE = re.compile(r"\s+")
_PROSE = (_EMPTY_LINES, _ITEM, _SENTENCE_END, _LINE_END, _SPACE)
_CODE = (_EMPTY_LINES, _LINE_END, _SPACE)
_CODE_BEGINS = re.compile(r"```|~~~|\||>>>|[^\S\n]")
UNDER = " > "
"""What separates the headings of a path."""


def sentences(text: str) -> list[str]:
    """Return the sentences of English, German or Chinese prose, each on one line.

    An empty line also ends a sentence, so a heading is a sentence of its own.
    """
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        joined = " ".join(paragraph.split())
        start = 0
        for end in _SENTENCE_END.finditer(joined):
            if not _goes_on(joined, start, end.start(), end.end()):
                found.append(joined[start : end.start()])
                start = end.end()
        found.append(joined[start:])
    return [sentence for part in found if (sentence := part.strip())]


def _goes_on(text: str, start: int, end: int, after: int) -> bool:
    """Return whether the full stop before ``end`` belongs to an abbreviation or a number."""
    last = text[max(start, end - _LONGEST_ABBREVIATION) : end]
    if _ABBREVIATED.search(last):
        return True
    following = text[after : after + 1]
    begins_small = following.islower() or following.isdigit() or following in "-–"
    if _NUMBERED.search(last):
        return begins_small
    if _DIGITS.search(last):
        is_date = _DAY.search(last) and _MONTH.match(text, after)
        return begins_small or bool(_ORDINAL.search(last) or is_date)
    return False


def first_part(text: str, most: int) -> str:
    """Return the first sentences of ``text`` on one line, at most ``most`` characters.

    If the first sentence is longer, it is cut after a word.
    """
    kept = ""
    for sentence in sentences(text):
        longer = f"{kept} {sentence}" if kept else sentence
        if len(longer) > most:
            break
        kept = longer
    if kept:
        return kept
    head = " ".join(text.split())[:most]
    return head.rsplit(" ", 1)[0] if len(head) == most and " " in head else head


def cut(
    text: str,
    most: int = PASSAGE_CHARACTERS,
    overlap: int = 0,
    headings: bool = True,
    kind: str = "md",
) -> Iterator[tuple[int, str]]:
    """Cut ``text`` into passages of at most ``most`` characters, of whole paragraphs if they fit.

    A heading starts a new passage. The path of headings, such as ``Zoo > Pandas > Food``, is the
    first paragraph of every passage under them; a path that is too long loses its outer headings.
    If a heading alone is too long, its beginning is used. If a heading would be in no passage, the
    first passage under it begins with a longer path, which contains the whole heading. If that is
    too long as well, or if nothing is under the heading, it is a passage of its own.

    Args:
        text: The text of a file.
        most: Maximum characters of a passage, including its path of headings.
        overlap: Maximum characters from the end of a passage that the next passage under the same
            heading repeats, in whole sentences or lines; at most a quarter of ``most``.
        headings: Whether each passage begins with its path of headings.
        kind: How headings are marked: a key of ``structure.KINDS``.

    Yields:
        The number of the line where the passage begins, not counting its headings, from 1; and
        the text of the passage.
    """
    for passage in cut_in_lines(text, most, overlap, headings, kind):
        yield passage.line, passage.text


class Passage(NamedTuple):
    """A passage and its lines, counted from 1.

    Attributes:
        line: The line where the passage begins, not counting its headings.
        text: The text, below its headings.
        first: The line of its first heading that is below the text of the passage before; the
            same as ``line`` if there is none.
        last: The line where the passage ends.
    """

    line: int
    text: str
    first: int
    last: int


def cut_in_lines(
    text: str, most: int, overlap: int = 0, headings: bool = True, kind: str = "md"
) -> Iterator[Passage]:
    """Cut ``text`` like ``cut``, and yield passages with all of their lines."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    overlap = min(overlap, most // 4)
    lines = [0, *(found.end() for found in _LINE_END.finditer(text))]
    longest = min(most // 4, PATH_CHARACTERS) if headings else 0
    sections = list(_sections(blocks(text, kind), [*lines, len(text)]))
    paths = list(_paths(sections))
    done = 0  # the number of sections before those since the last passage
    for place, begin in _first_paths(text, sections, paths, longest):
        begins = sections[place].begins
        path = [sections[outer].heading for outer in paths[place]]
        names = [outer.title for outer in path]
        prefix = first = _prefix(names, longest) if headings else ""
        alone: list[tuple[int, str]] = []
        while begin < _left_out(names, longest):
            if len(whole := UNDER.join(names[begin:])) <= most // 2:
                first = f"{whole}\n\n"
                break
            alone.append((begin, names[begin]))
            begin += 1
        if not _has_text(text, begins):
            alone.append((len(path) - 1, UNDER.join(names[begin:])))
        above = sections[done].heading.line + 1
        done = place + 1
        for level, title in alone:
            line = path[level].line + 1
            for piece in _of_heading(title, most):
                yield Passage(line, piece, above or line, max(line, path[level].body))
                above = 0
            # The headings between this one and the text begin the next passage.
            above = above or next((under.line + 1 for under in path[level + 1 :]), 0)
        pieces = [
            piece
            for start, end in pairwise(begins)
            for piece in _pieces(text, start, end, most - len(first) - overlap)
        ]
        packed = _packed(text, pieces, most - len(prefix), overlap, most - len(first))
        for number, (start, end) in enumerate(packed):
            line = bisect_right(lines, start)
            shown = (prefix if number else first) + text[start:end]
            yield Passage(line, shown, above or line, bisect_right(lines, end - 1))
            above = 0


def _of_heading(title: str, most: int) -> Iterator[str]:
    pieces = list(_finer(_PROSE, title, 0, len(title), most))
    for start, end in _packed(title, pieces, most, 0, most):
        yield title[start:end]


class _Section(NamedTuple):
    """A heading, where each block of text below it begins, and where the last block ends."""

    heading: Block
    begins: list[int]


def _sections(found: list[Block], lines: list[int]) -> Iterator[_Section]:
    heading, begins = Block(0), [0]
    for block in found:
        if block.level:
            yield _Section(heading, [*begins, lines[block.line]])
            heading, begins = block, []
        begins.append(lines[block.body if block.level else block.line])
    yield _Section(heading, [*begins, lines[-1]])


def _paths(sections: list[_Section]) -> Iterator[list[int]]:
    """Yield for each section the places of its heading and those above it that have words."""
    path: dict[int, int] = {}
    for place, (heading, _) in enumerate(sections):
        path = {level: above for level, above in path.items() if level < heading.level}
        path[heading.level] = place
        yield [above for above in path.values() if sections[above].heading.title]


def _first_paths(
    text: str, sections: list[_Section], paths: list[list[int]], longest: int
) -> Iterator[tuple[int, int]]:
    """Yield each section with passages, and where in its path that of its first passage begins.

    A section has passages if it has text, or if it is a heading with nothing under it. The path
    begins further out than that of other passages if a heading would otherwise be in no passage.

    Args:
        text: The text of the file.
        sections: Its sections.
        paths: Their paths.
        longest: Maximum characters of the other paths; 0 if passages have no paths.
    """
    usual: dict[int, int] = {}
    under: set[int] = set()
    seen: set[int] = set()
    for place in reversed(range(len(sections))):
        (heading, begins), path = sections[place], paths[place]
        is_item = heading.title and not heading.is_front_matter and place not in under
        if is_item or _has_text(text, begins):
            usual[place] = _left_out([sections[above].heading.title for above in path], longest)
            seen.update(path[usual[place] :])
            under.update(path)
    for place in sorted(usual):
        path, begin = paths[place], usual[place]
        if not longest:
            # Only the heading itself, if it has no text.
            yield place, begin - (not _has_text(text, sections[place].begins))
            continue
        for outer, above in enumerate(path[:begin]):
            is_needed = above == place or not sections[above].heading.is_front_matter
            if is_needed and above not in seen:
                begin = outer
                break
        seen.update(path[begin:])
        yield place, begin


def _has_text(text: str, begins: list[int]) -> bool:
    return bool(text[begins[0] : begins[-1]].strip())


def _left_out(names: list[str], most: int) -> int:
    """Return how many outer headings a path leaves out; all if the innermost alone is too long."""
    return next(
        (first for first in range(len(names)) if len(UNDER.join(names[first:])) <= most),
        len(names),
    )


def _prefix(names: list[str], most: int) -> str:
    """Return the path of headings; the outer ones are left out if it would be too long.

    If the innermost heading alone is too long, it is cut after a word.
    """
    if not names:
        return ""
    if shown := names[_left_out(names, most) :]:
        return f"{UNDER.join(shown)}\n\n"
    name, room = names[-1], most - len(CUT)
    head = name[:room]
    if name[room] != " ":
        head = head.rpartition(" ")[0] or head
    return f"{head.rstrip()}{CUT}\n\n"


def _pieces(text: str, start: int, end: int, most: int) -> Iterator[tuple[int, int]]:
    """Cut a block that is too long, if possible after a paragraph, sentence, line or word."""
    is_code = _CODE_BEGINS.match(text, start)
    for first, last in _cut_at(_EMPTY_LINES, text, start, end, most):
        code = is_code or _CODE_BEGINS.match(text, first)
        yield from _finer(_CODE if code else _PROSE, text, first, last, most)


def _finer(
    ends: Sequence[re.Pattern[str]], text: str, start: int, end: int, most: int
) -> Iterator[tuple[int, int]]:
    if end - start <= most:
        yield start, end
    elif not ends:
        yield from ((at, min(at + most, end)) for at in range(start, end, most))
    else:
        for first, last in _cut_at(ends[0], text, start, end, most):
            yield from _finer(ends[1:], text, first, last, most)


def _cut_at(
    ends: re.Pattern[str], text: str, start: int, end: int, most: int
) -> Iterator[tuple[int, int]]:
    places = []
    if end - start > most:
        places = [found.end() for found in ends.finditer(text, start, end)]
    yield from pairwise([start, *places, end])


def _packed(
    text: str, pieces: list[tuple[int, int]], most: int, overlap: int, first: int
) -> Iterator[tuple[int, int]]:
    """Join pieces into passages; white space around them is stripped, but an indent is kept.

    The first passage has at most ``first`` characters, the others ``most``.
    """
    room = first
    begin = done = -1
    for start, end in pieces:
        start, end = _trimmed(text, start, end)
        if start >= end:
            continue
        if begin < 0:
            begin = start
        elif end - begin > room:
            yield begin, done
            room = most
            begin = _repeated(text, begin, start, min(overlap, most - (end - start)))
        done = end
    if begin >= 0:
        yield begin, done


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    body = text[start:end]
    indent = len(body) - len(body.lstrip())
    if "\n" in body[:indent] or start == 0 or text[start - 1] == "\n":
        indent = body.rfind("\n", 0, indent) + 1
    return start + indent, start + len(body.rstrip())


def _repeated(text: str, begin: int, start: int, overlap: int) -> int:
    """Return where the last whole sentences or lines that fit into ``overlap`` begin."""
    for ends in (_SENTENCE_END, _LINE_END):
        for found in ends.finditer(text, max(begin + 1, start - overlap), start):
            if found.end() < start:
                return found.end()
    return start
