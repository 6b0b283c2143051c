"""Estimates the tokens of a text by a rule, or counts them with the Qwen3 tokenizer.

The rule counts Chinese, Japanese and Korean characters at 0.70 tokens, ASCII characters at 1/4.2
and all others at 0.45. Its totals were compared with the Qwen3 tokenizer (the vendor says the model
belongs to the Qwen3-Embedding series) on about 2,400 texts in ten sets: between 15 % low (German)
and 11 % high (English). "Characters / 4" was 65 % low on Chinese.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from nexusflow_integrations._core import forks

RULE_ERROR = 0.15
"""Largest measured error of the rule's total over a set of texts; see the module's docstring."""

_CJK = re.compile(
    "[\u1100-\u11ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff00-\uffef]+"
)

# CJK characters beyond the BMP (extensions B and later) are rare and count as "other".


def estimate_tokens(text: str) -> int:
    """Return the estimated number of tokens of ``text``; at least 1."""
    length = len(text)
    if text.isascii():
        return 1 + int(length / 4.2)
    cjk = sum(map(len, _CJK.findall(text)))
    ascii_ = len(text.encode("ascii", "ignore"))
    return 1 + int(0.70 * cjk + ascii_ / 4.2 + 0.45 * (length - cjk - ascii_))


def token_bound(encoded_bytes: int) -> int:
    """Return the most tokens that ``encoded_bytes`` of UTF-8 can have, including the end token.

    In a byte-level BPE every token has at least one byte.
    """
    return encoded_bytes + 1


@lru_cache(maxsize=1)
def exact_counter() -> Callable[[str], int] | None:
    """Return a function that counts with the Qwen3 tokenizer; ``None`` if it is not installed."""
    try:
        with forks.importing():
            import quicktok

            encoding = quicktok.get_encoding("qwen3")
    except ImportError:
        return None

    def count(text: str) -> int:
        return len(encoding.encode(text))

    return count
