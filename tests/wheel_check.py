"""Run by ``nox -s wheel`` where only the wheel and its base dependencies are installed."""

import importlib
import subprocess
import sys

import nexusflow_integrations
from nexusflow_integrations import NexusFlow

HEAVY = {"langchain_core", "llama_index", "chromadb", "numpy", "httpx", "aiohttp"}
assert not HEAVY & set(sys.modules), "importing the root must import none of these"

client = NexusFlow("sk-air-not-a-key", dimensions=64)
assert "sk-air" not in repr(client)
assert nexusflow_integrations.__version__

for name, extra in (
    ("langchain", "langchain"),
    ("llama_index", "llama-index"),
    ("chroma", "chroma"),
    ("haystack", "haystack"),
    ("lancedb", "lancedb"),
    ("llm", "llm"),
    ("pydantic_ai", "pydantic-ai"),
    ("ray", "ray"),
):
    try:
        importlib.import_module(f"nexusflow_integrations.{name}")
    except ImportError as error:
        assert f'pip install "nexusflow-integrations[{extra}]"' in str(error), error
        print(error)
    else:
        raise AssertionError(f"nexusflow_integrations.{name} is there without its extra")

command = subprocess.run(
    [sys.executable, "-c", "from nexusflow_integrations.cli import main; main()"],
    capture_output=True,
    text=True,
)
assert command.returncode == 3, command
assert 'pip install "nexusflow-integrations[cli]"' in command.stderr, command
print(command.stderr, end="")
print("the wheel works without extras")
