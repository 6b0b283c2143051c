"""Check the built site: every link inside it leads somewhere, and reading it loads nothing else.

    python tests/docs/check_site.py site

The generator's strict mode checks the links that stand in Markdown; this checks what it made of
them, of the docstrings and of raw HTML.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LOADS = {"script": "src", "img": "src", "source": "src", "iframe": "src", "link": "href"}
_NOT_LOADED = {"canonical", "alternate", "prev", "next"}  # what a <link> may only name


class Page(HTMLParser):
    """One page's anchors, where it leads and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.targets.append(given["href"])
        loaded = given.get(_LOADS.get(tag, ""))
        if loaded and not _NOT_LOADED & set(given.get("rel", "").split()):
            self.targets.append(loaded)
            self.loads.append(loaded)

    def has(self, fragment: str) -> bool:
        return not fragment or unquote(fragment) in self.anchors


def problems(site: Path) -> list[str]:
    """Return what is wrong with the site, one line each."""
    # 404.html is served under any address, so its links are written for the site's root.
    pages = {path.resolve(): Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        here = path.relative_to(site.resolve())
        found += [f"{here} loads {target}" for target in page.loads if urlsplit(target).netloc]
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if there.is_dir():
                there /= "index.html"
            if not there.exists():
                found.append(f"{here} links to {target}, which is not there")
            elif there in pages and not pages[there].has(parts.fragment):
                found.append(f"{here} links to {target}, which has no such place")
    return found


if __name__ == "__main__":
    if not list(Path(sys.argv[1]).glob("*.html")):
        sys.exit("no pages there")
    sys.exit("\n".join(problems(Path(sys.argv[1]))) or None)
