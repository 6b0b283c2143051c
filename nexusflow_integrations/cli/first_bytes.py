"""Recognises the type of a file that is not text by its first bytes."""

from __future__ import annotations

LOOKED_AT = 8_192
"""Number of bytes at the beginning of a file that are looked at."""

_KINDS = (
    (b"%PDF-", "a PDF"),
    (b"PK\x03\x04", "a ZIP archive, as DOCX, XLSX and EPUB are"),
    (b"\x1f\x8b", "compressed with gzip"),
    *((b"BZh%d1AY&SY" % level, "compressed with bzip2") for level in range(1, 10)),
    (b"\xfd7zXZ\x00", "compressed with xz"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"PAR1\x15", "Parquet"),
    (b"ARROW1\x00", "Arrow"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF87a", "a GIF image"),
    (b"GIF89a", "a GIF image"),
    (b"\x7fELF", "a program"),
    (b"\xd0\xcf\x11\xe0", "an old Office document"),
    (b"{\\rtf", "RTF"),
    (b"\xff\xfe", "UTF-16, not UTF-8"),
    (b"\xfe\xff", "UTF-16, not UTF-8"),
)


def not_text(data: bytes) -> str | None:
    """Return the type of a file that begins with ``data``; ``None`` if it may be text."""
    head = data[:LOOKED_AT]
    for start, kind in _KINDS:
        if head.startswith(start):
            return kind
    return "binary" if b"\x00" in head else None
