"""The cache key of a text: a hash of everything that determines its vector."""

from __future__ import annotations

import hashlib

KIND_BYTES = 4
"""Number of key bytes that depend on everything but the text, so that a model forms one range."""
TEXT_BYTES = 20


class Keyer:
    """Makes the keys for the texts of one client; call the object with a text.

    Args:
        base_url: Root of the API.
        model: Name of the model.
        dimensions: The requested size; ``None`` (the server's default) gives other keys.
        added: The user's own fields in each request.

    The instruction of a query is part of the text.
    """

    __slots__ = ("_hash", "base_url", "dimensions", "model", "prefix")

    def __init__(
        self, *, base_url: str, model: str, dimensions: int | None, added: str = ""
    ) -> None:
        self.base_url = base_url
        self.model = model
        self.dimensions = dimensions
        parts = ["vector 1", base_url, model, str(dimensions)]
        if added:
            parts.append(added)
        framed = b"".join(
            len(data).to_bytes(8, "big") + data for data in (part.encode() for part in parts)
        )
        kind = hashlib.sha256(framed).digest()
        self.prefix = kind[:KIND_BYTES]
        self._hash = hashlib.sha256(kind)

    def __call__(self, text: str) -> bytes:
        """Return the 24-byte key of the vector of ``text``."""
        digest = self._hash.copy()
        digest.update(text.encode())
        return self.prefix + digest.digest()[:TEXT_BYTES]
