"""Cutting text: into sentences, and into passages of whole paragraphs."""

from __future__ import annotations

import re
from collections.abc import Iterator

PASSAGE_CHARACTERS = 800
"""A few hundred tokens: long enough to answer a question, short enough to have one topic."""

_SENTENCE_END = re.compile(
    # English: white space after a full stop and any closing quote or bracket.
    r"(?:(?<=[.!?])|(?<=[.!?][\"'”’)]))(?<!e\.g\.)(?<!i\.e\.)\s+"
    # Chinese: no white space.
    r"|(?<=[。！？])(?![”’）])|(?<=[。！？][”’）])"
)
_HEADING = re.compile(r"#{1,6}\s+(\S.*?)\s*#*$")


def sentences(text: str) -> list[str]:
    """Return the sentences of English or Chinese prose, each on one line.

    An empty line also ends a sentence, so a heading is a sentence of its own.
    """
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        joined = " ".join(paragraph.split())
        found += [part.strip() for part in _SENTENCE_END.split(joined) if part.strip()]
    return found


def first_part(text: str, most: int) -> str:
    """Return the first sentences of ``text``, at most ``most`` characters, on one line.

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


def cut(text: str, most: int = PASSAGE_CHARACTERS) -> Iterator[tuple[int, str]]:
    """Cut ``text`` into passages of at most ``most`` characters, of whole paragraphs if they fit.

    A Markdown heading starts a new passage and is repeated in every passage under it.

    Yields:
        The number of the passage's first line, counted from 1, and the passage.
    """
    heading, start, kept = "", 0, ""
    for line, paragraph in _paragraphs(text):
        found = _HEADING.match(paragraph.splitlines()[0])
        room = most - len(heading) - 2
        if kept and (found or len(kept) + 2 + len(paragraph) > room):
            yield start, _under(heading, kept)
            kept = ""
        if found:
            heading = found.group(1)[: most // 4]
            paragraph = "\n".join(paragraph.splitlines()[1:]).strip()
            if not paragraph:
                continue
            line += 1
        for piece in _pieces(paragraph, most - len(heading) - 2):
            if kept and len(kept) + 2 + len(piece) > most - len(heading) - 2:
                yield start, _under(heading, kept)
                kept = ""
            start = start if kept else line
            kept = f"{kept}\n\n{piece}" if kept else piece
    if kept:
        yield start, _under(heading, kept)


def _under(heading: str, passage: str) -> str:
    return f"{heading}\n\n{passage}" if heading else passage


def _paragraphs(text: str) -> Iterator[tuple[int, str]]:
    held: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            held.append(line.rstrip())
        elif held:
            yield number - len(held), "\n".join(held)
            held = []
    if held:
        yield len(text.splitlines()) + 1 - len(held), "\n".join(held)


def _pieces(paragraph: str, most: int) -> Iterator[str]:
    """Cut a paragraph that is too long: after a sentence, else after a word, else anywhere."""
    while len(paragraph) > most:
        ends = [match.end() for match in _SENTENCE_END.finditer(paragraph, 0, most)]
        at = ends[-1] if ends else paragraph.rfind(" ", 1, most) + 1 or most
        yield paragraph[:at].strip()
        paragraph = paragraph[at:].lstrip()
    if paragraph:
        yield paragraph
