"""Commands write through links, devices and pipes, and lose no other file."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nexusflow_integrations._core.whole_file import whole
from nexusflow_integrations.cli import outputs
from nexusflow_integrations.cli.exits import UsageProblem

from .conftest import Command

COMMANDS = {
    "embed": ("embed", "{texts}"),
    "report": ("report", "zoo"),
    "tune": ("tune", "{texts}"),
}


def test_the_target_of_a_symbolic_link_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    with whole(link) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    link.unlink()
    link.symlink_to(tmp_path / "absent")
    with whole(link) as file:
        file.write(b"made")
    assert (tmp_path / "absent").read_text() == "made"


def test_a_named_pipe_is_written_to(tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    with whole(pipe) as file:
        file.write(b"new")
    reader.join(30)
    assert got == [b"new"]
    assert pipe.is_fifo()


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs the device")
def test_a_device_stays_a_device(tmp_path: Path) -> None:
    link = tmp_path / "full"
    link.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught, whole(link) as file:  # noqa: PT012
        file.write(b"new")
        file.flush()
    assert caught.value.filename == str(link)
    assert Path("/dev/full").is_char_device()


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_an_output_that_cannot_be_written_is_refused_at_once(
    nexusflow: Command, command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (texts := tmp_path / "texts.txt").write_text("Pandas climb.\n")
    arguments = [part.format(texts=texts) for part in command]

    def refusal(output: Path) -> str:
        return nexusflow.sentence(*arguments, "-o", str(output), code=2)

    assert refusal(tmp_path / "no" / "x.html").endswith("no' does not exist")
    monkeypatch.setattr(outputs.os, "access", lambda *_: False)  # root may write anywhere
    output = tmp_path / {"embed": "x.npy", "report": "x.html", "tune": "x.json"}[command[0]]
    assert refusal(output) == f"the folder {str(tmp_path)!r} cannot be written"


def test_a_report_replaces_neither_its_questions_nor_a_file_of_another_type(
    nexusflow: Command, tmp_path: Path
) -> None:
    (questions := tmp_path / "questions.jsonl").write_text('{"question": "Who climbs?"}\n')
    (notes := tmp_path / "notes.md").write_text("mine")
    asked = ["report", "zoo", "-q", str(questions), "-o"]
    assert "replace the input" in nexusflow.sentence(*asked, str(questions), code=2)
    assert "not an HTML file" in nexusflow.sentence(*asked, str(notes), code=2)
    assert notes.read_text() == "mine"


@pytest.mark.parametrize(
    "asked", [("report", "zoo", "-o"), ("tune", ".", "--page")], ids=["report", "tune"]
)
def test_a_page_does_not_replace_a_page_of_another_tool(
    asked: tuple[str, ...], nexusflow: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.md").write_text("Pandas climb.")
    (other := tmp_path / "report.html").write_text("<title>Tests passed</title>")
    said = nexusflow.sentence(*asked, "report.html", code=2)
    assert "neither `report` nor `tune` wrote it" in said
    assert other.read_text() == "<title>Tests passed</title>"


def test_a_page_may_replace_an_empty_file_or_an_earlier_page(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    outputs.check_page(page)
    page.touch()
    outputs.check_page(page)
    page.write_text('<!doctype html>\n<meta name="generator" content="nexusflow-integrations">\n')
    outputs.check_page(page)


@pytest.mark.parametrize(
    ("arguments", "ending"),
    [
        (("report", "zoo", "-o", "x.pdf"), ".html"),
        (("report", "zoo", "-o", "x.JSON"), ".html"),
        (("tune", ".", "-o", "x.html"), ".json"),
        (("tune", ".", "--page", "x.pdf"), ".html"),
        (("tune", ".", "--plot", "x.png"), ".svg"),
    ],
)
def test_an_output_that_is_named_like_a_file_of_another_type_is_refused(
    nexusflow: Command,
    arguments: tuple[str, ...],
    ending: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("Pandas climb.\n")
    said = nexusflow.sentence(*arguments, code=2)
    name = arguments[-1]
    suffix = Path(name).suffix.lower()
    assert said == f"{name!r} cannot be written as {suffix}: give it a name that ends in {ending}"


@pytest.mark.parametrize("name", ["report", "map.v2", "map.example.org", "map.html", "map.HTM"])
def test_an_output_with_another_ending_is_accepted(name: str) -> None:
    outputs.check_ending(Path(name), ".html", ".htm")


def test_an_output_must_not_be_the_input_under_another_name(tmp_path: Path) -> None:
    (texts := tmp_path / "texts.jsonl").write_text("{}")
    (link := tmp_path / "link.jsonl").symlink_to(texts)
    with pytest.raises(UsageProblem, match="replace the input"):
        outputs.check_output(link, texts)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_an_open_file_is_written_to_where_it_stands(name: str, tmp_path: Path) -> None:
    if not os.path.exists(name):
        pytest.skip("this system has no such name")
    code = (
        "from pathlib import Path\n"
        "from nexusflow_integrations._core.whole_file import whole\n"
        "from nexusflow_integrations.cli.outputs import check_output\n"
        f"check_output(Path({name!r}))\n"
        f"with whole(Path({name!r})) as file: file.write(b'new\\n')\n"
    )
    command = f"{sys.executable} -c {shlex.quote(code)}"
    out = tmp_path / "out.txt"
    script = f"echo first > {out}; {command} >> {out}; {{ {command}; echo end; }} >> {out}"
    subprocess.run(["sh", "-c", script], check=True, timeout=120)
    assert out.read_text().split() == ["first", "new", "new", "end"]
    piped = subprocess.run(["sh", "-c", f"{command} | cat"], capture_output=True, timeout=120)
    assert piped.stdout == b"new\n"


def test_an_existing_file_keeps_its_mode(tmp_path: Path) -> None:
    (secret := tmp_path / "secret").write_text("old")
    secret.chmod(0o600)
    with whole(secret) as file:
        file.write(b"new")
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_npy_cannot_be_written_to_a_pipe(nexusflow: Command, tmp_path: Path) -> None:
    (texts := tmp_path / "texts.txt").write_text("Pandas climb.\n")
    os.mkfifo(tmp_path / "pipe")
    asked = ["embed", str(texts), "-o", str(tmp_path / "pipe"), "--format", "npy"]
    assert "NPY needs a file" in nexusflow.sentence(*asked, code=2)


def test_the_outputs_of_tune_differ_and_replace_no_text(nexusflow: Command, tmp_path: Path) -> None:
    (text := tmp_path / "a.md").write_text("Pandas climb.")
    asked = ["tune", str(tmp_path), "-o"]
    out = str(tmp_path / "x.json")
    assert "another output" in nexusflow.sentence(*asked, out, "--page", out, code=2)
    assert "not a JSON file" in nexusflow.sentence(*asked, str(text), code=2)
    assert text.read_text() == "Pandas climb."
