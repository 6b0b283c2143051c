"""Ids of a source are noted in a temporary file; if the disk is full, the error says so."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nexusflow_integrations._core.seen_ids import SeenIds

FULL = """
import resource, signal
from nexusflow_integrations._core.seen_ids import SeenIds
from nexusflow_integrations.errors import NexusFlowError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))
seen = SeenIds()
try:
    WORK
except NexusFlowError as error:
    assert "temporary file" in str(error) and "TMPDIR" in str(error), error
else:
    raise AssertionError("no file was written")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of Linux stands for a full disk")
@pytest.mark.parametrize(
    "work",
    [
        "[seen.note(f'{n:0500}', n) for n in range(20_000)]",
        "seen.note_gone(f'{n:0500}' for n in range(20_000))",
    ],
)
def test_a_full_disk_is_an_error_that_names_tmpdir(work: str) -> None:
    code = FULL.replace("WORK", work)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_id_is_found_again_with_its_first_place() -> None:
    seen = SeenIds()
    assert [seen.note("a", 0), seen.note("b", 1), seen.note("a", 2)] == [None, None, 0]
    seen.close()
