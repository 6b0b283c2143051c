"""The check of the built site finds each kind of fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from .check_site import problems


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('<a href="other.html#there">', None),
        ('<a href="#here"><p id="here">', None),
        ('<a href="https://example.org/no">', None),
        ('<a href="gone.html">', "index.html links to gone.html, which is not there"),
        (
            '<a href="other.html#gone">',
            "index.html links to other.html#gone, which has no such place",
        ),
        ('<a href="#gone">', "index.html links to #gone, which has no such place"),
        ('<img src="gone.png">', "index.html links to gone.png, which is not there"),
        (
            '<script src="https://example.org/x.js">',
            "index.html loads https://example.org/x.js",
        ),
        ('<link rel="stylesheet" href="//example.org/x">', "index.html loads //example.org/x"),
        ('<link rel="canonical" href="https://example.org/">', None),
    ],
)
def test_a_broken_link_and_a_load_from_elsewhere_are_named(
    body: str, problem: str | None, tmp_path: Path
) -> None:
    (tmp_path / "index.html").write_text(body)
    (tmp_path / "other.html").write_text('<h1 id="there">')
    assert problems(tmp_path) == ([] if problem is None else [problem])
