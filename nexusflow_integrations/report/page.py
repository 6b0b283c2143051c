"""Build the HTML page: one file with data, style and script that loads nothing else."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib.resources import files
from typing import Any


def render(data: dict[str, Any]) -> str:
    """Return the page. Texts are escaped, whatever they contain."""
    here = files("nexusflow_integrations.report")
    style, script = ((here / name).read_text("utf-8") for name in ("page.css", "page.js"))
    # The content security policy allows only this style and this script, by their hashes.
    parts = {
        "@POLICY@": "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src '{_hash(style)}'; script-src '{_hash(script)}'",
        "@TITLE@": html.escape(str(data["title"])),
        "@STYLE@": style,
        "@DATA@": _inert(data),
        "@SCRIPT@": script,
    }
    page = (here / "page.html").read_text("utf-8")
    pieces = []
    for name, value in parts.items():
        # `str.replace` would also replace placeholders inside the texts.
        before, _, page = page.partition(name)
        pieces += [before, value]
    return "".join([*pieces, page])


def _inert(data: dict[str, Any]) -> str:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text = text.encode("utf-8", "replace").decode()  # UTF-8 cannot encode lone surrogates
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
