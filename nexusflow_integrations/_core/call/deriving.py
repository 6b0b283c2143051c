"""Cuts vectors of a wanted size from larger ones (``derive=True``), if the service does the same.

Once for each cache, the service embeds a few fixed texts at each size, and the cache stores the
vectors. From then on, a text is looked up at the wanted and every larger size, and missing texts
are fetched at the largest size. The cache holds only vectors that the service sent; they are cut on
their way to the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from nexusflow_integrations._core.comparing import FIXED_TEXTS
from nexusflow_integrations._core.log import logger
from nexusflow_integrations._core.models import model_named
from nexusflow_integrations._core.settings import Settings
from nexusflow_integrations._core.sizes import cut_sizes, cut_to_size
from nexusflow_integrations._core.usage import Ledger
from nexusflow_integrations._core.vectors import Vectors

if TYPE_CHECKING:
    from nexusflow_integrations._core.cache.cache import Cache


KeyerOf = Callable[[int], Callable[[str], bytes]]
"""Maps a size to the function that makes the keys of texts at that size."""


def larger_sizes(settings: Settings) -> tuple[int, ...]:
    """Return the sizes of the model above the wanted one, largest first."""
    wanted = settings.dimensions
    if wanted is None:
        return ()
    return tuple(size for size in model_named(settings.model).sizes if size > wanted)


def at_size(settings: Settings, size: int) -> Settings:
    """Return the same settings for vectors of another size."""
    return settings if size == settings.dimensions else replace(settings, dimensions=size)


class Comparison:
    """Which sizes a service cuts from its largest vectors, for one model and one ``extra_body``."""

    def __init__(self) -> None:
        self._is_cut: dict[int, bool] = {}
        self._has_said: set[int] = set()

    def lacks(self, sizes: Sequence[int]) -> bool:
        """Return whether one of ``sizes`` has not yet been compared with the first, the largest."""
        return any(size not in self._is_cut for size in sizes[1:])

    def learn(self, sizes: Sequence[int], rows: dict[int, list[Vectors]]) -> None:
        """Compare ``rows``, the vectors by size; a size without rows counts as not cut."""
        is_cut = cut_sizes(rows) if sizes[0] in rows else {}
        for size in sizes[1:]:
            self._is_cut.setdefault(size, is_cut.get(size, False))

    def sources(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Return those of ``sizes`` from which vectors of the last size can be cut.

        The last size is the wanted one. The result is empty if that size is not cut or has
        not been compared yet.
        """
        wanted = sizes[-1]
        if not self._is_cut.get(wanted):
            return ()
        return tuple(size for size in sizes if size == sizes[0] or self._is_cut.get(size))

    def warn(self, size: int, model: str) -> None:
        """Log once that vectors of ``size`` are paid for separately."""
        if size not in self._has_said:
            self._has_said.add(size)
            logger.warning(
                "vectors of size %d of %r are not the beginning of the service's largest ones:"
                " derive=True has no effect on this size, which is paid for separately",
                size,
                model,
            )


async def stored_rows(
    cache: Cache, key: Callable[[str], bytes], size: int, texts: Sequence[str], within: float
) -> dict[int, Vectors]:
    """Return stored vectors of ``size``, by position in ``texts``, without claiming any text."""
    keys = [key(text) for text in texts]
    found = (await cache.claim(keys, size, within, most=0)).hits
    return {place: found[key] for place, key in enumerate(keys) if key in found}


def share_of(time_left: Callable[[], float], part: float) -> Callable[[], float]:
    """Return a function that counts down ``part`` of the time that is left now."""
    left = time_left()
    if left == float("inf"):
        return time_left
    return lambda: time_left() - (1 - part) * left


async def compared(
    cache: Cache, keyer: KeyerOf, sizes: Sequence[int], time_left: Callable[[], float]
) -> dict[int, list[Vectors]]:
    """Return the vectors of the fixed texts that the cache holds, by size.

    If the time runs out, the remaining sizes are left out.
    """
    rows = {}
    for size in sizes:
        if (within := time_left()) <= 0:
            break
        found = await stored_rows(cache, keyer(size), size, FIXED_TEXTS, within)
        if len(found) == len(FIXED_TEXTS):
            rows[size] = [found[place] for place in range(len(FIXED_TEXTS))]
    return rows


async def derived(
    cache: Cache,
    keyer: KeyerOf,
    sources: Sequence[int],
    ledger: Ledger,
    time_left: Callable[[], float],
    texts: Sequence[str],
) -> dict[int, Vectors]:
    """Return cached vectors of any size in ``sources``, cut to the last of these sizes.

    The cache gets a quarter of the time that is left, for all sizes together.
    """
    time_left = share_of(time_left, 1 / 4)
    wanted = sources[-1]
    rows: dict[int, Vectors] = {}
    for size in sources:
        left = [place for place in range(len(texts)) if place not in rows]
        if not left or (within := time_left()) <= 0:
            break
        some = [texts[place] for place in left]
        found = await stored_rows(cache, keyer(size), size, some, within)
        if size != wanted:
            found = {place: cut_to_size(row, wanted) for place, row in found.items()}
            ledger.derived += len(found)
        rows |= {left[place]: row for place, row in found.items()}
    return rows
