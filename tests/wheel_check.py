"""Run by ``nox -s wheel`` where only the wheel and its base dependencies are installed."""

import importlib
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
    ("cli", "cli"),
):
    try:
        importlib.import_module(f"nexusflow_integrations.{name}")
    except ImportError as error:
        assert f'pip install "nexusflow-integrations[{extra}]"' in str(error), error
        print(error)
    else:
        raise AssertionError(f"nexusflow_integrations.{name} is there without its extra")
print("the wheel works without extras")
