"""A local server that speaks the API's protocol over a small real model, offline.

``POST /v1/embeddings`` on 127.0.0.1 answers as the service's documentation says it does: the
same request fields, response, usage, sizes, errors and limits, with vectors from a model that
PyPI packages carry inside themselves. It stands in for the service where there is no key and no
internet: examples, tests, continuous integration. It is not text-embedding-v4 and never says so:
the start line and the response header ``X-Local-Model`` name what really runs.

In code, on a free port, in a background thread (``async with`` works as well):

    from nexusflow_integrations.local import LocalServer

    with LocalServer() as server:          # model="hash" for fast tests without meaning
        client = NexusFlow(api_key=server.api_key, base_url=server.base_url)
        client.embed(["Red pandas climb trees.", "小熊猫会爬树。"])
        server.stats.requests              # also: texts, tokens, statuses, max_in_flight
        server.reset_stats()

In tests, from pytest's fixtures ``nexusflow_server`` (the real model, one for the session) and
``nexusflow_hash_server`` (the fast encoder, fresh counts for every test):

    def test_my_rag_offline(nexusflow_server):
        rag = MyRag(base_url=nexusflow_server.base_url, api_key=nexusflow_server.api_key)

In a terminal, until Ctrl-C: ``nexusflow serve``, which calls `serve`.

Models (``model=``):

- ``"minilm-use-gated"``, the default: MiniLM joined with the multilingual USE; English and 15
  more languages, Chinese among them.
- ``"use"``: the multilingual USE alone, lighter, on numpy only.
- ``"minilm"``: MiniLM alone, English only.
- ``"hash"``: hashed words, nearly free. Not semantic: for tests of plumbing and benchmarks.

All eight sizes of the API are answered, at unit length; those above a model's native size (896,
512 and 384 numbers) carry no more information than it. On one machine a text's vector is
the same in every request to the last bit, whatever texts are beside it; other versions of the
libraries or another number of threads may change the last bits.

Importing this package costs next to nothing: the server, numpy and the models are imported when
they are first used. What they need comes with ``pip install "nexusflow-integrations[local]"``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import create_app as create_app
    from .encoder import MODELS as MODELS
    from .encoder import Encoder as Encoder
    from .encoder import load_encoder as load_encoder
    from .quotas import Quotas as Quotas
    from .server import LocalServer as LocalServer
    from .server import serve as serve
    from .stats import ServerStats as ServerStats

_HOMES = {
    "Encoder": "encoder",
    "LocalServer": "server",
    "MODELS": "encoder",
    "Quotas": "quotas",
    "ServerStats": "stats",
    "create_app": "app",
    "load_encoder": "encoder",
    "serve": "server",
}

__all__ = [
    "MODELS",
    "Encoder",
    "LocalServer",
    "Quotas",
    "ServerStats",
    "create_app",
    "load_encoder",
    "serve",
]


def __getattr__(name: str) -> Any:
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(importlib.import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
