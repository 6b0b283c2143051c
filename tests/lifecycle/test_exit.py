"""A process exits within two seconds of its last call, even if something hangs."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from .scene import KEY, run

LONG = 60.0
"""Seconds that what hangs would hang."""
SOON = 10.0
"""Seconds in which a process on a busy machine ends that is to end within two."""

SILENT = """
    import socket, sys, time, warnings
    from nexusflow_integrations import NexusFlow
    from nexusflow_integrations.errors import APITimeoutError

    sys.modules["aiodns"] = None  # where it is installed, aiohttp may look names up with it
    how, key = sys.argv[1:]
    if how == "a look-up that hangs":
        socket.getaddrinfo = lambda *_, **__: time.sleep(60)
    else:
        silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        silent.bind(("127.0.0.1", 53))  # it takes questions, and says nothing
        warnings.simplefilter("ignore", ResourceWarning)
    client = NexusFlow(key, base_url="https://api.example.com/v1", deadline=1, max_retries=1)
    try:
        client.embed("a text")
    except APITimeoutError:
        print(time.time())
"""


def test_a_lookup_that_hangs_does_not_delay_the_exit() -> None:
    code, out, err = run(SILENT, "a look-up that hangs", KEY, seconds=LONG + 60)
    assert (code, err) == (0, "")
    assert time.time() - float(out) < SOON


def test_a_silent_name_server_does_not_delay_the_exit(tmp_path: Path) -> None:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("there is no unshare or no ip here")
    names = tmp_path / "resolv.conf"
    names.write_text("nameserver 127.0.0.1\noptions timeout:20 attempts:3\n")
    inside = 'ip link set lo up && mount --bind "$0" /etc/resolv.conf && exec "$@"'
    alone = ["unshare", "-rmn", "sh", "-c", inside, str(names)]
    try:
        subprocess.run([*alone, "true"], check=True, capture_output=True, timeout=60)
    except subprocess.CalledProcessError:
        pytest.skip("no network namespace may be made here")
    code, out, err = run(SILENT, "", KEY, seconds=LONG + 60, before=alone)
    assert (code, err) == (0, "")
    assert time.time() - float(out) < SOON


HANGING = """
    import sys, time
    from nexusflow_integrations import NexusFlow
    from nexusflow_integrations._core.cache.in_file import VectorStore

    how, key, url, place = sys.argv[1:]

    class Limits:
        requests_per_minute, tokens_per_minute, processes = 600.0, None, 1
        def lease(self, *_, **__):
            time.sleep(60)
        adjust = throttled = lease

    class Budget:
        tokens = 1_000_000
        def draw(self, *_):
            time.sleep(60)

    VectorStore.claim = VectorStore.open = lambda *_: time.sleep(60)
    options = {
        "limits": {"pacer": Limits()},
        "budget": {"budget": Budget()},
        "store": {"cache": place + "/cache.db"},
    }
    client = NexusFlow(key, base_url=url, dimensions=64, deadline=1, **options[how])
    try:
        client.embed("a text")
    except Exception:
        pass
    print(time.time())
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["limits", "budget", "store"])
def test_work_that_hangs_in_our_threads_does_not_delay_the_exit(
    server: Any, tmp_path: Path, how: str
) -> None:
    told = (how, KEY, server.base_url, str(tmp_path))
    code, out, err = run(HANGING, *told, seconds=LONG + 60, warnings=False)
    assert code == 0, err
    assert time.time() - float(out) < SOON
