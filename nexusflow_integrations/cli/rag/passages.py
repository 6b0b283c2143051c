"""Cutting text: into sentences, and into passages of whole paragraphs."""

from __future__ import annotations

import re
from collections.abc import Iterator

PASSAGE_CHARACTERS = 800
"""A few hundred tokens: enough to answer from, and little enough to be about one thing."""

_SENTENCE_END = re.compile(
    # English: white space behind a stop, and behind the quote or bracket that closes after it.
    r"(?:(?<=[.!?])|(?<=[.!?][\"'”’)]))(?<!e\.g\.)(?<!i\.e\.)\s+"
    # Chinese: no white space.
    r"|(?<=[。！？])(?![”’）])|(?<=[。！？][”’）])"
)
_HEADING = re.compile(r"#{1,6}\s+(\S.*?)\s*#*$")


def sentences(text: str) -> list[str]:
    """Return the sentences of English or Chinese prose, each on one line.

    An empty line ends a sentence as well, so a heading stands for itself.
    """
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        joined = " ".join(paragraph.split())
        found += [part.strip() for part in _SENTENCE_END.split(joined) if part.strip()]
    return found


def first_part(text: str, most: int) -> str:
    """Return the first sentences of ``text``, at most ``most`` characters, on one line.

    A first sentence that is longer than that is cut after a word.
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
    """Cut ``text`` into passages of whole paragraphs, where they fit into ``most`` characters.

    A Markdown heading begins a new passage and stands before every passage under it.

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
    """Cut a paragraph that is too long after a sentence, else after a word, else anywhere."""
    while len(paragraph) > most:
        ends = [match.end() for match in _SENTENCE_END.finditer(paragraph, 0, most)]
        at = ends[-1] if ends else paragraph.rfind(" ", 1, most) + 1 or most
        yield paragraph[:at].strip()
        paragraph = paragraph[at:].lstrip()
    if paragraph:
        yield paragraph
