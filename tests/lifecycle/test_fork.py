"""After a fork before, during or after warm-up, children and parent get the right vectors."""

from __future__ import annotations

import os
from typing import Any

import pytest

from .scene import KEY, run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

SCRIPT = """
    import os, signal, sys, threading, time
    from concurrent.futures import ThreadPoolExecutor
    import numpy as np
    from faults.server import expected_vector
    from nexusflow_integrations import NexusFlow

    url, key, mode, rounds = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    signal.alarm(250)
    client = NexusFlow(key, base_url=url, dimensions=64, timeout=60)

    def embed(name, times=4):
        for n in range(times):
            texts = [f"{name} {n} {i}" for i in range(12)]
            for row, text in zip(client.embed(texts), texts, strict=True):
                assert np.array_equal(row, expected_vector(text, 64)), (name, text)

    if mode != "before":
        embed("warm")
    stop = threading.Event()
    errors = []
    def keep_busy(n):
        try:
            k = 0
            while not stop.is_set():
                embed(f"busy {n} {k}", 1)
                k += 1
        except BaseException as error:
            errors.append(error)
    busy = [threading.Thread(target=keep_busy, args=(n,)) for n in range(2 * (mode == "during"))]
    for thread in busy:
        thread.start()
    for round in range(rounds):
        children = []
        for child in range(3):
            pid = os.fork()
            if pid == 0:
                signal.alarm(120)
                stop.set()
                code = 3
                try:
                    embed(f"child {round} {child}")
                    with ThreadPoolExecutor(2) as pool:
                        list(pool.map(lambda n: embed(f"child {round} {child} {n}", 1), range(2)))
                    code = 0
                except BaseException as error:
                    print(round, child, repr(error), flush=True)
                if mode == "after, normal exit":
                    sys.exit(code)
                os._exit(code)
            children.append(pid)
        embed(f"parent {round}")
        for pid in children:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, (mode, round)
        embed(f"parent after {round}")
    stop.set()
    for thread in busy:
        thread.join(60)
    assert not errors, errors
    print("all right")
"""


@pytest.mark.parametrize("mode", ["before", "during", "after", "after, normal exit"])
def test_after_a_fork_children_and_parent_get_the_right_vectors_without_a_warning(
    server: Any, mode: str
) -> None:
    # The fault is a race, so the forks repeat.
    code, out, err = run(SCRIPT, server.base_url, KEY, mode, "1" if mode == "before" else "3")
    assert (code, out.strip(), err) == (0, "all right", "")


GRANDCHILD = """
    import os, signal, sys
    import numpy as np
    from faults.server import expected_vector
    from nexusflow_integrations import NexusFlow

    signal.alarm(250)
    client = NexusFlow(sys.argv[2], base_url=sys.argv[1], dimensions=64)
    def embed(name):
        assert np.array_equal(client.embed(name), expected_vector(name, 64))
    embed("parent")
    pid = os.fork()
    if pid == 0:
        embed("child")
        pid = os.fork()
        if pid == 0:
            embed("grandchild")
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        embed("child again")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    embed("parent again")
    print("all right")
"""


def test_a_child_of_a_child_gets_the_right_vectors(server: Any) -> None:
    assert run(GRANDCHILD, server.base_url, KEY) == (0, "all right\n", "")


LOCKED = """
    import os, signal, sys, threading, time
    from nexusflow_integrations import NexusFlow
    from nexusflow_integrations._core.usage import Ledger

    signal.alarm(250)
    client = NexusFlow(sys.argv[2], base_url=sys.argv[1], dimensions=64)
    client.embed("warm")
    spins = threading.Event()
    def spin():
        while not spins.is_set():
            client.usage
            client._spent.add(Ledger())
    threads = [threading.Thread(target=spin) for _ in range(3)]
    for thread in threads:
        thread.start()
    failed = 0
    for n in range(25):
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            client.usage
            os._exit(0)
        failed += os.waitpid(pid, 0)[1] != 0
    spins.set()
    for thread in threads:
        thread.join()
    print(failed, "children hung")
"""


def test_a_fork_while_another_thread_counts_usage_leaves_no_child_hanging(server: Any) -> None:
    assert run(LOCKED, server.base_url, KEY) == (0, "0 children hung\n", "")
