"""Splits texts into words for keyword search, and merges rankings.

English words are reduced to their stems, and stop words are left out (``bm25s``, ``PyStemmer``).
Chinese has no blanks between words; ``rjieba`` finds the words. Japanese and Korean characters are
indexed in pairs. Forms of the same character, such as ``é`` as one or two characters, the ligature
``ﬁ`` of a PDF, or full-width letters, make the same word.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import cache, lru_cache
from importlib import import_module
from typing import TypeVar
from unicodedata import normalize

from nexusflow_integrations._core.needed import needed

T = TypeVar("T", bound=Hashable)

FUSION = 60
"""The constant of reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009)."""

_HAN = r"\u3400-\u9fff\uf900-\ufaff"
_OTHER = r"\u3040-\u30ff\uac00-\ud7af"
_INDIC = r"\u0900-\u0963\u0966-\u0dff"  # its vowel signs are no letters for ``re``
_UNSPACED = re.compile(f"[{_HAN}{_OTHER}]+")
_ONLY_HAN = re.compile(f"[{_HAN}]+")
_WORD = re.compile(rf"[\w{_INDIC}]{{2,}}|[{_HAN}{_OTHER}]")
_INSIDE = re.compile(
    # Soft hyphens, joiners, accents without a letter of their own, Hebrew and Arabic vowel points.
    r"[\u00ad\u200c\u200d\u0300-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7"
    r"\u0610-\u061a\u064b-\u065f\u0670]"
)
_SYMBOL = re.compile(rf"[^\w\s{_INDIC}]")
_STEMS = 1 << 18
"""Maximum number of words whose stems are cached."""


def words_of(text: str) -> list[str]:
    """Return the words by which a text is found, in order; stop words are left out.

    Raises:
        ImportError: A package is missing; the message says what to install.
    """
    stop_words, stem, cut = _tools()

    def spaced(run: re.Match[str]) -> str:
        found = run.group()
        if _ONLY_HAN.fullmatch(found):
            return f" {' '.join(cut(found))} "
        return f" {' '.join(found[at : at + 2] for at in range(max(1, len(found) - 1)))} "

    words = _WORD.findall(_UNSPACED.sub(spaced, _unified(text.lower()).replace("_", " ")))
    return [stem(word) for word in words if word not in stop_words]


def _unified(text: str) -> str:
    """Return ``text`` with one form for each character, and without marks inside of words."""
    if text.isascii():
        return text
    text = _INSIDE.sub("", normalize("NFC", text))
    # Remove symbols first: NFKC would write the letters of a symbol such as ™ into the word.
    # Letters of mathematics, such as bold ones, have no small form before that.
    return normalize("NFKC", _SYMBOL.sub(" ", text)).lower()


def fused(rankings: Iterable[Sequence[T]], k: int = FUSION) -> list[tuple[T, float]]:
    """Merge rankings by reciprocal rank fusion.

    Args:
        rankings: Rankings with the best item first; no item occurs twice in the same ranking.
        k: The larger ``k`` is, the more the lower ranks count.

    Returns:
        All items with their scores, best first. A score is the sum of ``1 / (k + rank)`` over the
        rankings, with ranks counted from 1. Items with equal scores are in the order of the
        rankings.
    """
    scores: dict[T, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, 1):
            scores[item] = scores.get(item, 0.0) + 1 / (k + rank)
    return sorted(scores.items(), key=lambda pair: -pair[1])


def check_packages() -> None:
    """Check that the packages of a keyword search are installed.

    Raises:
        ImportError: A package is missing; the message says what to install.
    """
    packages = ("bm25s", "Stemmer", "rjieba")
    if all(map(sys.modules.get, packages)):
        return  # changing the filters of warnings makes Python show earlier warnings again
    with (
        needed("A keyword search", *packages, install="nexusflow-integrations[hybrid]"),
        warnings.catch_warnings(),
    ):
        # In a notebook without ipywidgets, bm25s's import of tqdm warns that bars are plain text.
        # No bar is shown here.
        warnings.filterwarnings("ignore", "IProgress not found")
        for name in packages:
            import_module(name)


@cache
def _tools() -> tuple[frozenset[str], Callable[[str], str], Callable[[str], list[str]]]:
    check_packages()
    import rjieba
    import Stemmer
    from bm25s.stopwords import STOPWORDS_EN

    stem = lru_cache(_STEMS)(Stemmer.Stemmer("english").stemWord)
    return frozenset(STOPWORDS_EN), stem, rjieba.cut
