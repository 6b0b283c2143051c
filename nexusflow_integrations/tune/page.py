"""Write the results of a run as an SVG plot and as one HTML page that loads no other file."""

from __future__ import annotations

import base64
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from nexusflow_integrations._core.counts import count
from nexusflow_integrations._core.whole_file import whole
from nexusflow_integrations.cli.words import in_bytes
from nexusflow_integrations.tune.result import TuneResult
from nexusflow_integrations.tune.scores import MEASURES, Interval
from nexusflow_integrations.tune.search import READ, Measured

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 480, 360, 56, 46, 28, 18
_BOLD = 6.5  # the width of a letter of the label
_COLOURS = {"vectors": "#3056d3", "keywords": "#b8912a", "hybrid": "#12805c"}
_QUESTIONS_SHOWN = 300
COLUMNS = (*MEASURES, f"in {READ:,}", "tokens", "price", "bytes", "query time")
"""Names of the columns in a table of settings, after the column with the setting's name."""
_STYLE = """
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th, td { text-align: left; padding: 4px 10px 4px 0; vertical-align: top; }
th { color: var(--dim); font-weight: 600; }
tr + tr td { border-top: 1px solid var(--line); }
th + th, td + td { white-space: nowrap; }
td:first-child { min-width: 130px; }
.scrolled { overflow-x: auto; }
.plot { max-width: 720px; margin: 0 auto; }
.plot text[fill] { fill: #c2371f; }
.chosen td { background: var(--soft); font-weight: 600; }
@media (max-width: 560px) {
  .plot text { font-size: 14px; }
  .plot text[fill] { display: none; }
}
"""


def write_page(
    result: TuneResult, path: str | os.PathLike[str], *, local_model: str | None = None
) -> None:
    """Write the page. An old file is replaced only when the new one is complete.

    Args:
        result: The result of the run.
        path: The HTML file.
        local_model: Name of the local model, if that was measured instead of the service. The page
            says that the model is free.
    """
    _write(path, page(result, local_model))


def write_plot(result: TuneResult, path: str | os.PathLike[str]) -> None:
    """Write the plot as an SVG file."""
    _write(path, plot(result))


def _write(path: str | os.PathLike[str], text: str) -> None:
    with whole(Path(path)) as file:
        file.write(text.encode("utf-8", "replace"))


# -- the plot ------------------------------------------------------------------------------------


def plot(result: TuneResult) -> str:
    """Return an SVG of nDCG@10 against the bytes of the index, with the chosen setting marked."""
    shown = result.measured
    sizes = [max(1, item.bytes) for item in shown]
    across = _scale(math.log10(min(sizes)), math.log10(max(sizes)), _LEFT, _WIDTH - _RIGHT)
    low, high = min(item.mean for item in shown), max(item.mean for item in shown)
    up = _scale(low, high, _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
        ' font-family="sans-serif" font-size="11" fill="#7a8290">'
        "<title>nDCG@10 against the bytes of the index</title>"
        '<text x="8" y="12">nDCG@10</text>'
    ]
    for step in range(5):
        value = low + (high - low) * step / 4
        y = up(value)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"'
            f' stroke="#8884"/><text x="{_LEFT - 8}" y="{y + 4:.1f}"'
            f' text-anchor="end">{value:.3f}</text>'
        )
    for power in range(math.floor(math.log10(min(sizes))), math.ceil(math.log10(max(sizes))) + 1):
        x = across(power)
        if _LEFT <= x <= _WIDTH - _RIGHT:
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"'
                f' stroke="#8884"/><text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}"'
                f' text-anchor="middle">{in_bytes(10 ** max(0, power))}</text>'
            )
    parts.append(
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 8}" text-anchor="end">bytes of the index</text>'
    )
    for place, (method, colour) in enumerate(_COLOURS.items()):
        parts.append(
            f'<circle cx="{_LEFT + 12 + 90 * place}" cy="{_HEIGHT - 12}" r="4" fill="{colour}"/>'
            f'<text x="{_LEFT + 20 + 90 * place}" y="{_HEIGHT - 8}">{method}</text>'
        )
    for item in shown:
        x, y = across(math.log10(max(1, item.bytes))), up(item.mean)
        full = item.setting.storage == "float32"
        colour = _COLOURS[item.setting.method]
        fill = f'fill="{colour}"' if full else f'fill="none" stroke="{colour}" stroke-width="1.5"'
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {fill}>'
            f"<title>{escape(str(item.setting))}: {item.mean:.3f}, {in_bytes(item.bytes)}</title>"
            "</circle>"
        )
        if item.setting == result.choice:
            half = len(str(item.setting)) * _BOLD / 2
            middle = max(half, min(_WIDTH - half, x))
            above = y - 16 if y > _TOP + 30 else y + 24
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="9" fill="none" stroke="#c2371f"'
                f' stroke-width="2"/><text x="{middle:.1f}" y="{above:.1f}" fill="#c2371f"'
                f' font-weight="bold" text-anchor="middle">{escape(str(item.setting))}</text>'
            )
    return "".join([*parts, "</svg>"])


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    spread = high - low or 1.0
    inside = (end - start) * 0.94
    first = start + (end - start) * 0.03
    return lambda value: first + (value - low) / spread * inside


# -- the page ------------------------------------------------------------------------------------


def page(result: TuneResult, local_model: str | None = None) -> str:
    """Return the page. All texts are escaped, and the page has no script."""
    style = (files("nexusflow_integrations.report") / "page.css").read_text("utf-8") + _STYLE
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    title = "Measured settings and the choice"
    usage = result.usage
    ring = "The ring marks the choice. " if result.choice == result.chosen.setting else ""
    facts = (
        f"{count(len(result.questions), 'question')}; differences in"
        f" nDCG@10 above {result.tellable:.3f} are measurable."
    )
    if local_model is None:
        listed = " at the list price" if usage.price.per_million_tokens is not None else ""
        facts += (
            f" {result.model}: {usage.tokens:,} tokens were billed,"
            f" {_price(result, usage.tokens)}{listed}."
        )
    else:
        facts += (
            f" Measured with {local_model}, a local model, which is free: {usage.tokens:,} tokens."
            " Prices are those of the service."
        )
    return "".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src'
            f" data:; base-uri 'none'; form-action 'none'; style-src 'sha256-{digest}'\">\n"
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="referrer" content="no-referrer">\n'
            '<meta name="generator" content="nexusflow-integrations">\n'
            '<link rel="icon" href="data:,">\n'
            f"<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n",
            f'<header><h1>{title}</h1><p class="facts">{escape(facts)}</p></header>\n<main>\n',
            _card("The choice", f"<p>{escape(result.sentence())}</p>", *_paragraphs(result)),
            _card(
                "Quality and size",
                f'<p class="dim">{ring}Hollow circles are int8 or binary.</p>',
                f'<div class="plot">{plot(result)}</div>',
            ),
            _card("Settings", _settings(result)),
            _card("Questions that a setting does not answer", _questions(result)),
            '</main>\n<footer class="dim">This file loads nothing and sends nothing.</footer>\n'
            "</body>\n</html>\n",
        ]
    )


def _card(title: str, *parts: str) -> str:
    return f'<section class="card wide"><h2>{title}</h2>{"".join(parts)}</section>\n'


def _paragraphs(result: TuneResult) -> list[str]:
    return [f'<p class="dim">{escape(note)}</p>' for note in result.notes()]


def _table(head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        f'<tr class="{kind}">{"".join(f"<td>{escape(cell)}</td>" for cell in row)}</tr>'
        for kind, row in rows
    )
    return f'<div class="scrolled"><table><tr>{cells}</tr>{body}</table></div>'


def _settings(result: TuneResult) -> str:
    head = ["setting", *COLUMNS]
    own, others = (
        [
            (_kind(result, item), row)
            for item, row in rows(result)
            if is_other_length(result, item) is other
        ]
        for other in (False, True)
    )
    below = ""
    if others:
        below = (
            "<h3>Passages of other lengths</h3>"
            f'<p class="dim">{MEASURES[0]} is not comparable with that of the settings above.</p>'
            f"{_table(head, others)}"
        )
    return (
        f"{_table(head, own)}{below}"
        '<p class="dim">Each score is followed by its difference from the best one in points, with'
        " the interval that would contain 95 % of such differences for as many other questions."
        f' "{COLUMNS[len(MEASURES)]}" is the share of questions with an answer in the first'
        ' passages of that many characters. "query time" is the time of a search in memory, without'
        " the embedding.</p>"
    )


def _kind(result: TuneResult, item: Measured) -> str:
    return "chosen" if item.setting == result.choice else ""


def is_other_length(result: TuneResult, item: Measured) -> bool:
    """Return whether the passages of ``item`` have another length than those of the choice."""
    return item.setting.cutting.characters != result.chosen.setting.cutting.characters


def rows(result: TuneResult) -> list[tuple[Measured, list[str]]]:
    """Return each setting with its cells: its name and ``COLUMNS``. The best setting is first.

    Settings with passages of another length come last, because their scores are not comparable.
    """
    found = []
    for item in sorted(
        result.measured,
        key=lambda item: (is_other_length(result, item), -item.mean, item.bytes),
    ):
        scores = [
            f"{result.score(item, column).value:.3f} {apart(result.difference(item, column))}"
            for column in range(len(MEASURES))
        ]
        cost = _price(result, item.tokens)
        read = f"{item.read.mean():.3f}"
        tail = [
            read,
            f"{item.tokens:,}",
            cost,
            in_bytes(item.bytes),
            f"{1000 * item.seconds:.2f} ms",
        ]
        found.append((item, [str(item.setting), *scores, *tail]))
    return found


def _price(result: TuneResult, tokens: int) -> str:
    price = result.usage.price.of(tokens)
    return "price not known" if math.isnan(price) else f"{price:.4f} {result.usage.currency}"


def apart(found: Interval) -> str:
    """Return a difference and its interval, in points: ``-1.2 [-2.0, -0.3]``."""
    if not (found.value or found.low or found.high):
        return ""
    low, high = (f"{100 * value:+.1f}" for value in (found.low, found.high))
    return f"{100 * found.value:+.1f} [{low}, {high}]"


def _questions(result: TuneResult) -> str:
    shown = _beside_each_other(result)
    lost = [
        number
        for number in range(len(result.questions))
        if any(item.scores[number, 1] == 0 for item in shown)
    ]
    if not lost:
        return (
            "<p>Each of these settings answers every question in its first five results.</p>"
            f'<p class="dim">{escape(_named(result, shown))}</p>'
        )
    table = _table(
        ["question", *(str(item.setting) for item in shown)],
        (
            ("", [result.questions[number].text, *(_mark(item, number) for item in shown)])
            for number in lost[:_QUESTIONS_SHOWN]
        ),
    )
    said = (
        f"At least one of these settings does not answer {len(lost):,} of"
        f" {count(len(result.questions), 'question')} in its first five results."
    )
    if len(lost) > _QUESTIONS_SHOWN:
        said += f" The table shows the first {_QUESTIONS_SHOWN}."
    return (
        f'<p class="dim">{said} ●: the first result answers the question. ○: one of the first five'
        f" results does. –: none of these does.</p>{table}"
    )


def _named(result: TuneResult, shown: Sequence[Measured]) -> str:
    """Return which settings are compared, and how many others miss an answer."""
    names = "; ".join(str(item.setting) for item in shown)
    said = (
        f"These settings are: {names}. They are the choice, the best one, the first one, and the"
        " best of each kind of search and format."
    )
    missing = sum(bool((item.scores[:, 1] == 0).any()) for item in result.measured)
    if missing:
        others = count(len(result.measured) - len(shown), "other setting")
        does = "does" if missing == 1 else "do"
        said += f" {missing:,} of {others} {does} not answer every question there."
    return said


def _mark(item: Measured, number: int) -> str:
    if item.scores[number, 2]:
        return "●"
    return "○" if item.scores[number, 1] else "–"


def _beside_each_other(result: TuneResult) -> list[Measured]:
    """Return the chosen, best and first settings, and the best of each method and format."""
    kinds = [
        [item for item in result.measured if item.setting.method == method] for method in _COLOURS
    ]
    kinds += [
        [item for item in result.measured if item.setting.storage == storage]
        for storage in ("int8", "binary")
    ]
    best = [max(kind, key=lambda item: item.mean) for kind in kinds if kind]
    found: list[Measured] = []
    for item in [result.chosen, result.best, result.measured[0], *best]:
        if all(item is not other for other in found):
            found.append(item)
    return found
