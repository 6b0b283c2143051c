"""What ``.gitignore`` excludes is what git itself would exclude, also with odd rules."""

from __future__ import annotations

import os
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest

from nexusflow_integrations.cli.rag import corpus
from nexusflow_integrations.cli.rag.ignored import Ignored

_NAMES = (
    *("a", "b", "foo", "x.md", "!x", "#y", "sp ", "br[1", "[ab]", "pri vate", "é", "\xa0", "*"),
    *("tab\t", "back\\", "7"),
)
_PRIVATE = b"private/\n"
_ODD = (
    b"!\n", b"foo\\\n", b"[z-a]\n", b"[[a]\n", b"x[\n", b"//\n", b"/\n", b"\\\n", b"!/\n", b"#\n",
    b"[]\n", b"\xff\xfe\n", b"\xe2\x80\xa8!private\n", b"\x0b\n", b"!private\t\n",
)  # fmt: skip
_RULES = (
    b"*\n!/a\n", b"*\n!*/\n!x.md\n", b"f*\n!/f*\n", b"a/**\n!a/x.md\n", b"a/**/\n", b"**/\n",
    b"**\n!b/\n!b/x.md\n", b"*/\n", b"/**\n", b"/*\n!/foo/\n", b"a/*\n!a/foo/\n", b"**/foo\n",
    b"a/**/x.md\n", b"foo  \nsp\\ \n", b"sp\\  \n", b"tab\t\n", b"tab\n", b"back\\\\ \n",
    b"back\\\\\r\n", b"\\#y\r\n\\!x\r\n", b" a\n", b"[[:digit:]]\n", b"[!a]\n", b"?\n",
    b"\xa0\n", b"\xc2\xa0\n", b"pri vate\n", b"pri?vate", b"br[1\nbr\\[1\n", b"\\*\n", b"[ab]\n",
    b"\\[ab]\n", b"x.md\n!x.md/\n", b"a/b\n", b"a/foo/\n", b"\xef\xbb\xbffoo\n",
    b"\xc3\xa9\n", b"***\n", b"***/*\n", b"a/***\n",
)  # fmt: skip


def _git(folder: Path, *arguments: str, given: bytes = b"") -> bytes:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    plain = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        input=given,
        capture_output=True,
        env=os.environ | plain,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr  # 1: no file is ignored
    return done.stdout


def _sources(folder: Path) -> list[str]:
    return [item.origin for item in corpus.folder(folder).documents]


@pytest.mark.parametrize("odd", [b"\xef\xbb\xbf", *_ODD])
def test_an_odd_line_does_not_void_the_other_rules(tmp_path: Path, odd: bytes) -> None:
    (tmp_path / ".gitignore").write_bytes(odd + _PRIVATE)
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "secret.md").write_text("Secret.")
    (tmp_path / "a.md").write_text("Words.")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _sources(tmp_path) == ["a.md"]


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such names")
@pytest.mark.parametrize("rules", [*_RULES, *(_PRIVATE + odd for odd in _ODD)])
def test_the_files_that_git_ignores_are_ignored_and_no_others(tmp_path: Path, rules: bytes) -> None:
    _git(tmp_path, "init", "--quiet")
    (tmp_path / ".gitignore").write_bytes(rules)
    for folder in ("", "a", "b", "foo", "a/foo", "private", "a/b"):
        (tmp_path / folder).mkdir(exist_ok=True)
        for name in _NAMES:
            if not (tmp_path / folder / name).is_dir() and f"{folder}/{name}" not in (
                *("/a", "/b", "/foo", "a/foo", "a/b"),
            ):
                (tmp_path / folder / name).write_text("Words.")
    ignored, asked, found = Ignored(tmp_path), [], set()
    for root, folders, files in os.walk(tmp_path):
        kept = []
        for name in sorted({*folders, *files} - {".git", ".gitignore"}):
            path = Path(root, name)
            asked.append(os.fsencode(path.relative_to(tmp_path)))
            if ignored(path, is_folder=name in folders):
                found.add(asked[-1])
            elif name in folders:
                kept.append(name)
        folders[:] = kept
    said = _git(tmp_path, "check-ignore", "-z", "--stdin", given=b"\0".join(asked))
    assert found == set(said.split(b"\0")) - {b""}


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        ("private/\n".encode("utf-16"), "UTF-16, not UTF-8"),
        (b"private/\n\0", "binary"),
    ],
)
def test_rules_that_are_not_text_are_refused(tmp_path: Path, contents: bytes, reason: str) -> None:
    (tmp_path / ".gitignore").write_bytes(contents)
    (tmp_path / "a.md").write_text("Words.")
    with pytest.raises(corpus.CorpusError, match=rf"\.gitignore.* leave out: {reason}$"):
        corpus.folder(tmp_path)
    with pytest.raises(corpus.CorpusError, match=reason):
        corpus.whole(str(tmp_path))


def test_rules_that_cannot_be_read_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".gitignore").write_bytes(_PRIVATE)
    (tmp_path / "a.md").write_text("Words.")
    read = Path.read_bytes

    def denied(path: Path) -> bytes:
        if path.name == ".gitignore":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(corpus.CorpusError, match="which files to leave out: Permission denied"):
        corpus.folder(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="named pipes")
def test_a_gitignore_that_is_no_file_has_no_rules_and_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "b" / ".gitignore").mkdir(parents=True)
    os.mkfifo(tmp_path / ".gitignore")
    (tmp_path / "b" / "a.md").write_text("Words.")
    assert _sources(tmp_path) == ["b/a.md"]
