"""A local server that offers the API's protocol with a small real model, offline.

``POST /v1/embeddings`` on 127.0.0.1 behaves as the service documents it: the same request fields,
response, usage, sizes, errors and limits. The vectors come from a model contained in PyPI packages.
The server replaces the service where there is no key or no internet: in examples, tests and
continuous integration. The server does not run text-embedding-v4: the start message and the
response header ``X-Local-Model`` name the model that it runs.

In code, on a free port, in a background thread (``async with`` works as well):

    from nexusflow_integrations.local import LocalServer

    with LocalServer() as server:          # model="hash" for fast tests, without semantics
        client = NexusFlow(api_key=server.api_key, base_url=server.base_url)
        client.embed(["Red pandas climb trees.", "小熊猫会爬树。"])
        server.stats.requests              # also: texts, tokens, statuses, max_in_flight
        server.reset_stats()

In tests, with the pytest fixtures ``nexusflow_server`` (the real model, one server per session) and
``nexusflow_hash_server`` (the fast encoder, counts reset for every test):

    def test_my_rag_offline(nexusflow_server):
        rag = MyRag(base_url=nexusflow_server.base_url, api_key=nexusflow_server.api_key)

In a terminal, until Ctrl-C: ``nexusflow serve``, which calls `serve`.

Models (``model=``):

- ``"minilm-use-gated"``, the default: MiniLM combined with the multilingual USE; English and 15
  more languages, including Chinese.
- ``"use"``: only the multilingual USE; lighter, needs only numpy.
- ``"minilm"``: only MiniLM; English.
- ``"hash"``: hashed words; very fast, not semantic. For tests and benchmarks of clients.

All eight sizes of the API are supported, at unit length. Sizes above a model's native size (896,
512 and 384 dimensions) contain no more information. On one machine, the vector of a text is bitwise
the same in every request, regardless of the other texts. Other versions of the libraries, or
another number of threads, may change the last bits.

Importing this package is cheap: the server, numpy and the models are imported at first use. Install
their dependencies with ``pip install "nexusflow-integrations[local]"``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import create_app as create_app
    from .encoder import MODELS as MODELS
    from .encoder import Encoder as Encoder
    from .encoder import load_encoder as load_encoder
    from .listening import CannotListenError as CannotListenError
    from .quotas import Quotas as Quotas
    from .server import LocalServer as LocalServer
    from .server import serve as serve
    from .stats import ServerStats as ServerStats

_HOMES = {
    "CannotListenError": "listening",
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
    "CannotListenError",
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
