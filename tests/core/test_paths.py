"""``cache=`` for users without a home folder, and in a current folder that was removed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from lifecycle.scene import run

from nexusflow_integrations import NexusFlow
from nexusflow_integrations._core.cache.in_file import VectorStore
from nexusflow_integrations.errors import ConfigurationError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the folders are those of Linux")


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user as in a container with an arbitrary uid: without HOME and without an account."""
    import pwd

    def unknown(uid: int) -> Any:
        raise KeyError(uid)

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder is one that was removed."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize("make", [lambda: NexusFlow(cache=True), lambda: VectorStore(True)])
def test_a_user_without_a_home_folder_is_told_to_name_a_path(make: Any) -> None:
    with pytest.raises(ConfigurationError, match=r'no home folder: pass cache="/a/path"'):
        make()


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize("path", ["~", "~/vectors.sqlite3"])
def test_a_path_with_a_tilde_is_refused_without_a_home_folder(path: str) -> None:
    with pytest.raises(ConfigurationError, match="cache must be an absolute path, because this"):
        NexusFlow(cache=path)


@pytest.mark.usefixtures("homeless")
def test_no_home_folder_is_needed_if_the_environment_names_a_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    NexusFlow(cache=True)


@pytest.mark.usefixtures("nowhere")
def test_an_absolute_path_needs_no_current_folder(tmp_path: Path) -> None:
    path = tmp_path / "vectors.sqlite3"
    assert NexusFlow(cache=path)._cache == str(path)
    store = VectorStore(str(path))
    store.open()
    store.close()
    assert path.exists()


@pytest.mark.usefixtures("nowhere")
def test_a_relative_path_without_a_current_folder_is_refused_and_the_message_says_why() -> None:
    with pytest.raises(ConfigurationError, match="the current folder cannot be read: No such file"):
        NexusFlow(cache="vectors.sqlite3")


WITHOUT_SQLITE = """
    import sys

    sys.modules["sqlite3"] = None
    from nexusflow_integrations import NexusFlow, errors

    try:
        NexusFlow("key", cache=sys.argv[1] or True).embed("a")
    except errors.ConfigurationError as error:
        print(error)
"""


@pytest.mark.parametrize("cache", ["", "vectors.sqlite3"])
def test_a_python_without_sqlite_raises_a_configuration_error(cache: str, tmp_path: Path) -> None:
    code, out, err = run(WITHOUT_SQLITE, cache, cwd=tmp_path)
    assert (code, err) == (0, "")
    assert "cache needs the module sqlite3, which this Python was built without" in out
