"""The blocks of a text: its headings with their levels, and where each paragraph begins."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from nexusflow_integrations._core.needed import needed

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

_FRONT_MATTER = re.compile(
    r"(?:---\n(?P<yaml>.{,10000}?)(?<=\n)(?:---|\.\.\.)"
    r"|\+\+\+\n(?P<toml>.{,10000}?)(?<=\n)\+\+\+)(?:\n|\Z)",
    re.DOTALL,
)
_MDX_MODULE = re.compile(
    # Blank lines, a statement of JavaScript, and its further lines up to a blank line or a heading.
    r"\s*^(?:import(?:[\w\s{},*$]+?\bfrom)?\s*['\"]"
    r"|export\s*(?:[{*]|(?:const|let|var|function|async|class|default|type|interface|enum)\b))"
    r".*(?:\n(?!\s*$|#).*)*\n?",
    re.MULTILINE,
)
_ADORNMENT = re.compile(r"([!-/:-@[-`{-~])\1*")
_SHORT_ADORNMENT = 4
_ROLE = re.compile(r":[\w:.+-]+:`[!~]?([^`<]*?)(?:\s*<[^`>]*>)?`")
_ASCIIDOC = re.compile(r"(={1,6})\s+(\S.*)")
_ASCIIDOC_VERBATIM = re.compile(r"(-{4,}|\.{4,}|\+{4,}|/{4,}|```)(?:(?<=`)\w+)?\s*")
_ORG = re.compile(r"(\*+)\s+(\S.*?)(?:\s+:[\w@:]+:)?\s*")
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class Block:
    """A part of a text that is cut only if it is too long.

    Attributes:
        line: Its first line, counted from 0. It ends where the next block begins.
        level: 1 for a top heading, 2 for a heading below it, and so on; 0 if the block is not a
            heading.
        title: The words of the heading; empty if the block only ends the section of that level.
        body: The first line after a heading.
        is_front_matter: Whether the heading is the title in the settings of a site generator.
    """

    line: int
    level: int = 0
    title: str = ""
    body: int = 0
    is_front_matter: bool = False


def blocks(text: str, kind: str) -> list[Block]:
    r"""Return the blocks of ``text`` in order.

    Args:
        text: The text, with ``\n`` at the end of each line.
        kind: One of `KINDS`; text of another kind has paragraphs and no headings.
    """
    return sorted(KINDS.get(kind, _paragraphs)(text), key=lambda block: block.line)


def _paragraphs(text: str) -> Iterator[Block]:
    """Begin a block after each empty line; indented lines belong to the block before them."""
    blank = True
    for number, line in enumerate(text.split("\n")):
        if blank and line[:1].strip():
            yield Block(number)
        blank = not line.strip()


# -- Markdown ------------------------------------------------------------------------------------


@cache
def _markdown_parser() -> MarkdownIt:
    with needed("Reading Markdown", "markdown_it", install="nexusflow-integrations[cli]"):
        from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark").enable("table")
    parser.core.ruler.enableOnly(["normalize", "block"])  # leave inline markup unparsed
    return parser


def _mdx(text: str) -> Iterator[Block]:
    """Find the blocks of Markdown below the imports and exports at the beginning."""
    title, end = _front_matter(text) or ("", 0)
    while found := _MDX_MODULE.match(text, end):
        end = found.end()
    return _below(text, title, end)


def _markdown(text: str) -> Iterator[Block]:
    return _below(text, *(_front_matter(text) or ("", 0)))


def _below(text: str, title: str, end: int) -> Iterator[Block]:
    """Find the blocks below ``end``; what is above is no text, and ``title`` is its heading."""
    parser = _markdown_parser()
    if end:  # settings of a site generator, which come before the text
        lines = len(text[:end].splitlines())
        yield Block(0, 1, title, lines, is_front_matter=True)
        text = "\n" * lines + text[end:]
    tokens = parser.parse(text)
    for place, token in enumerate(tokens):
        if token.level or not token.map or token.nesting < 0:
            continue
        first, end = token.map
        if token.type == "heading_open":
            yield Block(first, int(token.tag[1]), _words(tokens[place + 1].content), end)
        else:
            yield Block(first)


def _front_matter(text: str) -> tuple[str, int] | None:
    """Return the title in the YAML or TOML at the beginning of ``text``, and where that ends."""
    found = _FRONT_MATTER.match(text)
    if found is None:
        return None
    settings = _of_yaml(found["yaml"]) if found["toml"] is None else _of_toml(found["toml"])
    if not isinstance(settings, dict):
        return None  # a thematic break and a paragraph
    title = settings.get("title")
    return " ".join(title.split()) if isinstance(title, str) else "", found.end()


def _of_yaml(text: str) -> object:
    with needed("Reading Markdown", "yaml", install="nexusflow-integrations[cli]"):
        import yaml

    try:
        settings: object = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    return {} if settings is None else settings


def _of_toml(text: str) -> object:
    with needed("Reading Markdown", "tomli", install="nexusflow-integrations[cli]"):
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            import tomli as tomllib

    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError):  # TOMLDecodeError is a ValueError
        return None


def _words(title: str) -> str:
    """Return the words of a heading without markup and link addresses."""
    (inline,) = _inline_parser().parseInline(title)
    children = inline.children or []
    shown = "".join(" " if "break" in child.type else child.content for child in children)
    return " ".join(shown.split())


@cache
def _inline_parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False})


# -- reStructuredText ----------------------------------------------------------------------------


def _restructured(text: str) -> Iterator[Block]:
    """Find titles as docutils does: the order of the first adornments gives the levels."""
    lines = [line.rstrip() for line in text.split("\n")]
    levels: dict[tuple[str, bool], int] = {}
    number = 0
    blank = True
    while number < len(lines):
        over = blank and bool(lines[number]) and _is_title(lines[number : number + 3])
        if over or (blank and _is_title(["", *lines[number : number + 2]])):
            title, under = lines[number + over], lines[number + 1 + over]
            level = levels.setdefault((under[0], over), len(levels) + 1)
            number, first = number + 2 + over, number
            yield Block(first, level, _ROLE.sub(r"\1", title.strip()), number)
            continue
        if blank and lines[number][:1].strip():
            yield Block(number)
        blank = not lines[number]
        number += 1


def _is_title(lines: list[str]) -> bool:
    """Return whether three lines form a title: an optional overline, the text, an underline."""
    if len(lines) < 3:
        return False
    over, title, under = lines
    if not title.strip() or not _ADORNMENT.fullmatch(under) or (title[0] == " " and not over):
        return False
    if over:
        return over == under and not _ADORNMENT.fullmatch(title)
    return len(under) >= min(_SHORT_ADORNMENT, len(title)) and not _ADORNMENT.fullmatch(title)


# -- others --------------------------------------------------------------------------------------


def _asciidoc(text: str) -> Iterator[Block]:
    fence, blank = "", True
    for number, line in enumerate(text.split("\n")):
        if fence:
            fence = "" if line.rstrip() == fence else fence
        elif found := _ASCIIDOC.fullmatch(line):
            yield Block(number, len(found[1]), found[2].strip(), number + 1)
        else:
            if blank and line.strip():
                yield Block(number)
            if opened := _ASCIIDOC_VERBATIM.fullmatch(line):
                fence = opened[1]
        blank = not line.strip() and not fence


def _org(text: str) -> Iterator[Block]:
    lines = text.split("\n")
    blank = True
    for number, line in enumerate(lines):
        if found := _ORG.fullmatch(line):
            yield Block(number, len(found[1]), found[2], _below_drawer(lines, number + 1))
        elif blank and line[:1].strip():
            yield Block(number)
        blank = not line.strip()


def _below_drawer(lines: list[str], line: int) -> int:
    """Return the first line after an Org heading's properties."""
    if line < len(lines) and lines[line].strip() == ":PROPERTIES:":
        for number in range(line + 1, min(line + 100, len(lines))):
            if lines[number].strip() == ":END:":
                return number + 1
    return line


def _python(text: str) -> Iterator[Block]:
    """Treat classes and functions as sections. A section begins with the comments above it."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        yield from _paragraphs(text)
        return
    yield from _definitions(tree, 1, text.split("\n"))


def _definitions(parent: ast.AST, level: int, lines: list[str]) -> Iterator[Block]:
    below = False  # whether the previous statement is a definition
    for child in ast.iter_child_nodes(parent):
        if not isinstance(child, ast.stmt):
            continue
        above = getattr(child, "decorator_list", [])
        first = min([child.lineno, *(item.lineno for item in above)]) - 1
        while first and lines[first - 1].lstrip().startswith("#"):
            first -= 1
        if isinstance(child, _DEFINITIONS):
            yield Block(first, level, child.name, first)
            yield from _definitions(child, level + 1, lines)
        elif below:
            yield Block(first, level, "", first)
        elif level == 1:
            yield Block(first)
        below = isinstance(child, _DEFINITIONS)


KINDS = {
    "md": _markdown,
    "mdx": _mdx,
    "rst": _restructured,
    "adoc": _asciidoc,
    "org": _org,
    "py": _python,
    "plain": _restructured,
}
"""For each kind of text, the function that finds its blocks."""
