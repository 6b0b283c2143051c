"""For Chroma's own tests: registers our function before they are collected, over a local server."""

from __future__ import annotations

import os

import nexusflow_integrations.chroma  # noqa: F401 - registers it
from nexusflow_integrations.local import LocalServer

server = LocalServer("hash").start()
os.environ["NEXUSFLOW_API_KEY"] = server.api_key
os.environ["NEXUSFLOW_BASE_URL"] = server.base_url
