"""The command runs as a process: a first run, Ctrl-C, and its imports."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import nexusflow_integrations

ROOT = Path(nexusflow_integrations.__file__).parents[1]
COMMAND = [sys.executable, "-m", "nexusflow_integrations.cli"]

NO_NETWORK = """
import socket
real_connect, real_lookup = socket.socket.connect, socket.getaddrinfo
def connect(self, address, *rest):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise SystemExit(f"somebody connects to {address}")
    return real_connect(self, address, *rest)
def lookup(host, *rest, **more):
    if host not in ("127.0.0.1", "::1", "localhost", None):
        raise SystemExit(f"somebody looks up {host}")
    return real_lookup(host, *rest, **more)
socket.socket.connect, socket.getaddrinfo = connect, lookup
"""

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A user without any setting, on a machine where every distant host is out of reach."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(NO_NETWORK)
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().endswith("_PROXY") and not name.startswith(("NEXUSFLOW_", "COV_"))
    }
    home = str(tmp_path / "home")
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]),
        "HOME": home,
        "XDG_CACHE_HOME": f"{home}/.cache",
        "LOCALAPPDATA": home,
        "COLUMNS": "80",
        "PYTHONIOENCODING": "utf-8",
    }


def run(
    environment: dict[str, str], folder: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=900,
        check=False,
    )


@pytest.mark.slow
def test_the_first_run_in_an_empty_folder_needs_no_key_and_no_network(
    environment: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    done = run(environment, folder, "demo")
    assert done.returncode == 0, done.stderr
    shown = done.stdout
    assert "a small local model, not text-embedding-v4" in shown
    assert "500 docstrings of Python" in shown
    assert re.search(r"\[1\] 0\.\d{3} \S+  random\.choice", shown)
    assert "“Choose a random element from a non-empty sequence.” [1]" in shown
    assert "The three agree: the same passages with the same scores." in shown
    assert re.search(r"[\d,]+ tokens in [\d,]+ requests", shown)
    assert "The local model is free." in shown
    assert "nexusflow ask" in shown
    assert re.search(r"500 passages written in [\d.,]+ s, [\d,]+ tokens\.", done.stderr)
    for framework in ("LangChain", "LlamaIndex", "Chroma"):
        assert framework in shown
    assert "¥" not in shown
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    assert list(folder.iterdir()) == []

    asked = run(environment, folder, "ask", "求两个整数的最大公约数")
    assert asked.returncode == 0, asked.stderr
    assert "math.gcd" in asked.stdout


def test_help_and_version_import_no_framework_no_model_and_no_server(
    environment: dict[str, str], tmp_path: Path
) -> None:
    heavy = "{'chromadb','langchain_core','llama_index','onnxruntime','starlette','bm25s','openai'}"
    code = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print(sorted({heavy} & set(sys.modules)), file=sys.stderr))\n"
        "from nexusflow_integrations.cli import main\n"
        "sys.argv = ['nexusflow', {!r}]\n"
        "main()\n"
    )
    for option in ("--help", "--version"):
        done = subprocess.run(
            [sys.executable, "-c", code.replace("{!r}", repr(option))],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.strip() == "[]"


def test_without_typer_the_command_says_what_to_install(
    environment: dict[str, str], tmp_path: Path
) -> None:
    code = (
        "import sys\nsys.modules['typer'] = None\n"
        "from nexusflow_integrations.cli import main\nmain()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 3
    assert done.stderr.strip().endswith('pip install "nexusflow-integrations[cli]"')
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), ("cache", "info"), ("indexes", "list", "--json")]
)
def test_output_that_cannot_be_written_ends_in_1_with_one_sentence(
    environment: dict[str, str], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, *arguments],
            env=environment,
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "nexusflow: standard output: No space left on device\n"


@pytest.mark.skipif(os.name != "posix", reason="closes a descriptor by a shell")
@pytest.mark.parametrize(
    ("arguments", "code"), [("--version", 0), ("--help", 0), ("embed --local no", 2)]
)
def test_a_closed_standard_output_changes_no_exit_code(
    environment: dict[str, str], tmp_path: Path, arguments: str, code: int
) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {arguments} >&-', "sh", *COMMAND],
        env=environment,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_symbols_that_the_console_cannot_show_are_replaced_by_others(
    environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "panda.md").write_text("小熊猫吃竹子。\n", "utf-8")
    environment |= {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    shown = run(environment, tmp_path, "index", "panda.md", "--estimate").stdout
    assert re.search(r"Tokens +\d+ \+-\d+%", shown)
    assert "?" not in shown


def test_json_loses_no_character_that_the_console_cannot_show(
    environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "panda.md").write_text("小熊猫吃竹子。\n", "utf-8")
    environment |= {"PYTHONIOENCODING": "latin-1"}
    done = run(environment, tmp_path, "embed", "--local", "--json", "panda.md", "-o", "猫.jsonl")
    assert json.loads(done.stdout)["output"] == "猫.jsonl"


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_while_indexing_ends_in_130_without_a_traceback(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with subprocess.Popen(
        [*COMMAND, "demo", "-f", "chroma", "--limit", "1400"],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Index "):  # from here on it embeds, for many seconds
                break
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130
    assert stderr.strip() == "nexusflow: stopped"


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_serve_serves_until_ctrl_c(environment: dict[str, str], tmp_path: Path) -> None:
    options = ("--model", "hash", "--api-key", "sk-air-one", "--sizes", "independent", "--log")
    with subprocess.Popen(
        [*COMMAND, "serve", "--port", "0", *options],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        found = re.search(r"http://127\.0\.0\.1:\d+/v1", process.stderr.readline())
        assert found
        first = []
        for size in (2048, 64):
            answer = httpx.post(
                f"{found[0]}/embeddings",
                json={"model": "text-embedding-v4", "input": "x", "dimensions": size},
                headers={"Authorization": "Bearer sk-air-one"},
                trust_env=False,
                timeout=300,
            )
            assert answer.status_code == 200
            vector = answer.json()["data"][0]["embedding"][:64]
            first.append([number > 0 for number in vector])
        assert first[0] != first[1]
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=300)
        assert said.count('"POST /v1/embeddings HTTP/1.1" 200') == 2
        assert "sk-air-one" not in said
        assert process.returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="there is no sh")
@pytest.mark.parametrize(
    ("closed", "arguments", "said"),
    [
        ("<&-", ["embed"], "name a FILE with texts"),
        ("<&-", ["indexes", "remove", "zoo"], "confirm with --yes"),
        (">&-", ["embed", "texts.txt"], "standard output is closed: name -o FILE"),
    ],
)
def test_a_stream_that_the_parent_closed_is_named(
    closed: str,
    arguments: list[str],
    said: str,
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    (tmp_path / "texts.txt").write_text("a text\n")
    (tmp_path / "zoo@x" / "chroma-1").mkdir(parents=True)
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND, *arguments],
        cwd=tmp_path,
        env=environment | {"NEXUSFLOW_STORE": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("answer", "code"), [(b"n\n", 1), (b"\x04", 130)], ids=["no", "Ctrl-D"])
def test_a_question_that_is_not_answered_stops_the_command(
    answer: bytes, code: int, tmp_path: Path
) -> None:
    pty = pytest.importorskip("pty")
    (tmp_path / "zoo@x" / "chroma-1").mkdir(parents=True)
    command = [sys.executable, "-m", "nexusflow_integrations.cli", "indexes", "remove", "zoo"]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*command, "--store", str(tmp_path)],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    os.close(theirs)
    try:
        os.write(ours, answer)
        said = process.communicate(timeout=120)[1].decode()
    finally:
        process.kill()
        os.close(ours)
    assert process.returncode == code, said
    assert ("nexusflow: stopped" in said) == (code == 130)
    assert (tmp_path / "zoo@x").exists()
