"""The key of a text: a hash of everything that its vector is made from."""

from __future__ import annotations

import hashlib

KIND_BYTES = 4
"""The first bytes of a key stand for everything but the text, so that one kind is one range."""
TEXT_BYTES = 20


class Keyer:
    """Makes the keys of all texts that one client sends with one setting: call it with a text.

    Args:
        base_url: Root of the API.
        model: Name of the model.
        dimensions: The size asked for; ``None``, the server's own, is a variant of its own.
        added: What the user adds to each request.

    The instruction that goes with a query is part of its text.
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
        """Return the 24 bytes under which the vector of ``text`` is kept."""
        digest = self._hash.copy()
        digest.update(text.encode())
        return self.prefix + digest.digest()[:TEXT_BYTES]
