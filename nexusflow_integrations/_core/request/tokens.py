"""How many tokens a text has: a rule that needs nothing, or the model's own tokenizer.

The rule counts Chinese, Japanese and Korean characters at 0.70, ASCII characters at 1/4.2 and all
others at 0.45. Measured against the Qwen3 tokenizer (the model belongs to the Qwen3-Embedding
series, says its vendor) on about 2,400 texts in ten sets, its total was between 15 % low (German)
and 11 % high (English); "characters / 4" was 65 % low on Chinese.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from nexusflow_integrations._core import forks

RULE_ERROR = 0.15
"""Largest error of the rule's total over a set of texts, as measured (see above)."""

_CJK = re.compile(
    "[\u1100-\u11ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff00-\uffef]+"
)

# Not a plain "[...]+": astral CJK (extensions B and later) is rare and falls under "other".


def estimate_tokens(text: str) -> int:
    """Return about how many tokens the model counts for ``text``; at least 1."""
    length = len(text)
    if text.isascii():
        return 1 + int(length / 4.2)
    cjk = sum(map(len, _CJK.findall(text)))
    ascii_ = len(text.encode("ascii", "ignore"))
    return 1 + int(0.70 * cjk + ascii_ / 4.2 + 0.45 * (length - cjk - ascii_))


def token_bound(encoded_bytes: int) -> int:
    """Return the most tokens that so many bytes of UTF-8 can be, with the end token.

    A byte-level BPE has at least one byte in every token.
    """
    return encoded_bytes + 1


@lru_cache(maxsize=1)
def exact_counter() -> Callable[[str], int] | None:
    """Return the Qwen3 tokenizer's count, if an installed package carries it; else ``None``."""
    try:
        with forks.importing:
            import quicktok

            encoding = quicktok.get_encoding("qwen3")
    except ImportError:
        return None

    def count(text: str) -> int:
        return len(encoding.encode(text))

    return count
