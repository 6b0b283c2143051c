"""Fixtures: a server without a model for most tests, and a plain HTTP client."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from nexusflow_integrations.local import LocalServer
from nexusflow_integrations.local.pytest_plugin import nexusflow_server

# Fixtures of the plugin under test, so that these tests also run where it is not installed.
__all__ = ["nexusflow_server"]


class Wire:
    """A client that uses only HTTP and JSON."""

    def __init__(self, server: LocalServer) -> None:
        self.server = server
        self.http = httpx.Client(
            base_url=server.base_url,
            headers={"Authorization": f"Bearer {server.api_key}"},
            timeout=600,
            trust_env=False,
        )

    def post(self, **fields: Any) -> httpx.Response:
        """Send the fields as JSON, with the model's name unless another is given."""
        body = {"model": "text-embedding-v4", **fields}
        return self.http.post("/embeddings", json=body)

    def error(self, answer: httpx.Response, status: int) -> dict[str, str]:
        """Check the status and form of an error response, and return its error object."""
        assert answer.status_code == status, answer.text
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.headers["X-Request-ID"]
        body = answer.json()
        assert set(body) == {"error"}
        assert set(body["error"]) == {"code", "message", "type"}
        assert all(isinstance(value, str) and value for value in body["error"].values())
        error: dict[str, str] = body["error"]
        return error

    @staticmethod
    def unpack(text: str) -> np.ndarray:
        """The float32 numbers in one base64 embedding."""
        return np.frombuffer(base64.b64decode(text, validate=True), "<f4")

    def embed(self, texts: list[str], **fields: Any) -> np.ndarray:
        """Return the vectors of texts, float32 of shape (n, size), with ten texts in a request."""
        rows = []
        for start in range(0, len(texts), 10):
            answer = self.post(input=texts[start : start + 10], encoding_format="base64", **fields)
            assert answer.status_code == 200, answer.text
            rows += [self.unpack(item["embedding"]) for item in answer.json()["data"]]
        return np.stack(rows)


@pytest.fixture(scope="session")
def hash_wire() -> Iterator[Wire]:
    with LocalServer("hash", record_texts=True) as server:
        wire = Wire(server)
        yield wire
        wire.http.close()


@pytest.fixture
def wire(hash_wire: Wire) -> Wire:
    """A client of a server without a model, with its counts reset."""
    hash_wire.server.reset_stats()
    return hash_wire


@pytest.fixture(scope="session")
def real(nexusflow_server: LocalServer) -> Iterator[Wire]:
    """A client of a server with the default model."""
    wire = Wire(nexusflow_server)
    yield wire
    wire.http.close()


@pytest.fixture
def wire_to() -> Iterator[Callable[..., Wire]]:
    """Start a server without a model, with options, and return a client of it."""
    wires: list[Wire] = []

    def start(**options: Any) -> Wire:
        wire = Wire(LocalServer("hash", **options).start())
        wires.append(wire)
        return wire

    yield start
    for wire in wires:
        wire.http.close()
        wire.server.stop()
