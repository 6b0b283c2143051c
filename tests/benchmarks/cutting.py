"""How well passages of a text are found, cut in different ways: hit rates over the Python tutorial.

    python tests/benchmarks/cutting.py FOLDER

FOLDER holds the tutorial of CPython 3.11 as reStructuredText, ``Doc/tutorial`` in its sources.
The local model finds the passages. ``langchain-text-splitters`` is needed for the comparison.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from langchain_text_splitters import Language, RecursiveCharacterTextSplitter
from tutorial_questions import LABELLED

from nexusflow_integrations.cli.rag.passages import PASSAGE_CHARACTERS, cut
from nexusflow_integrations.local import load_encoder

CUTS = (1, 3, 5)


def ours(kind: str, headings: bool = True) -> Callable[[str], Iterable[str]]:
    """Return the passages of ``cut``, without their lines."""
    return lambda text: [passage for _, passage in cut(text, headings=headings, kind=kind)]


SPLITTERS: dict[str, Callable[[str], Iterable[str]]] = {
    "cut": ours("rst"),
    "cut, headings=False": ours("rst", headings=False),
    "cut as if it had no headings": ours("none"),
    "LangChain's for RST": RecursiveCharacterTextSplitter.from_language(
        Language.RST, chunk_size=PASSAGE_CHARACTERS, chunk_overlap=0
    ).split_text,
}


def main(folder: Path) -> None:
    """Print a row for each way of cutting."""
    encoder = load_encoder(threads=2)
    files = {file.name: file.read_text("utf-8") for file in sorted(folder.glob("*.rst"))}
    asked = encoder.encode([question.text for question in LABELLED])
    for name, split in SPLITTERS.items():
        passages = [(source, part) for source, text in files.items() for part in split(text)]
        rows = encoder.encode([part for _, part in passages])
        order = np.argsort(-(asked @ rows.T), axis=1)
        print(f"{name:30} {len(passages):4} passages", end="")
        for language in ("en", "zh"):
            ranks = [
                next(
                    (rank for rank, at in enumerate(near) if question.answered_by(*passages[at])),
                    len(passages),
                )
                for question, near in zip(LABELLED, order, strict=True)
                if question.language == language
            ]
            hits = " ".join(f"@{most} {sum(rank < most for rank in ranks)}" for most in CUTS)
            print(f"  {language} ({len(ranks)}): {hits}", end="")
        print()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
