"""Runs a model in its own thread, so that the event loop is never blocked."""

from __future__ import annotations

import asyncio
import atexit
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from .sizes import Projection

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .encoder import Encoder

_Job = tuple[list[str], "asyncio.Future[NDArray[np.float32]]"]

# Requests that wait while the model is busy share its next run, until it has so many texts or
# characters. Long texts gain nothing from sharing, and stopping waits for the end of a run.
_TEXTS_PER_RUN = 64
_CHARACTERS_PER_RUN = 20_000
_STOP_PATIENCE = 30.0


class ModelRunner:
    """Loads an encoder in the background and encodes for any event loop.

    Requests that arrive while the model is busy are encoded together in its next run.

    Args:
        encoder: An encoder that was created and checked, but not loaded.
        on_run: Called in the model's thread before each run.
    """

    def __init__(self, encoder: Encoder, on_run: Callable[[], None]) -> None:
        self.encoder = encoder
        self._on_run = on_run
        self._projection: Projection | None = None
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._loaded = threading.Event()
        self._failure: Exception | None = None
        self._counting: ThreadPoolExecutor | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start loading the model, and return immediately.

        Requests that arrive before the model is loaded wait. A stopped runner may be started again.
        """
        self._failure = None
        if self.encoder.instant:
            self._load()
            return
        self._counting = ThreadPoolExecutor(1, thread_name_prefix="local-model-tokens")
        self._thread = threading.Thread(
            target=self._work, args=(self._jobs,), name="local-model", daemon=True
        )
        self._thread.start()
        # If the interpreter exits while a thread is in the model's C++ code, the process aborts.
        atexit.register(self.stop)

    def stop(self) -> None:
        """End the model's threads after the model is loaded and the requested runs are done."""
        atexit.unregister(self.stop)
        self._jobs.put(None)
        self._jobs = queue.SimpleQueue()
        if self._counting is not None:
            self._counting.shutdown()
            self._counting = None
        if self._thread is not None:
            self._thread.join(_STOP_PATIENCE)
            self._thread = None

    @property
    def loaded(self) -> bool:
        """Whether the model has been loaded."""
        return self._loaded.is_set() and self._failure is None

    async def count_tokens(self, texts: list[str]) -> list[int]:
        """Count tokens; one int per text."""
        if self.encoder.instant:
            return self.encoder.count_tokens(texts)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._counting, self._count, texts)

    async def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Encode and project: float32 of shape (n, 2048)."""
        if self.encoder.instant:
            self._on_run()
            return self._spread(texts)
        future: asyncio.Future[NDArray[np.float32]] = asyncio.get_running_loop().create_future()
        self._jobs.put((texts, future))
        return await future

    def _load(self) -> None:
        try:
            self.encoder.load()
            self._projection = Projection(self.encoder.native_size, self.encoder.block)
        except Exception as error:  # noqa: BLE001 - raised again for each request
            self._failure = error
        finally:
            self._loaded.set()

    def _count(self, texts: list[str]) -> list[int]:
        self._loaded.wait()
        if self._failure is not None:
            raise self._failure
        return self.encoder.count_tokens(texts)

    def _spread(self, texts: list[str]) -> NDArray[np.float32]:
        if not self._loaded.is_set():
            self._load()
        if self._failure is not None:
            raise self._failure
        assert self._projection is not None
        return self._projection.spread(self.encoder.encode(texts))

    def _work(self, jobs: queue.SimpleQueue[_Job | None]) -> None:
        self._load()
        while (job := jobs.get()) is not None:
            batch = [job]
            # Only this thread takes from the queue, so get() does not block.
            while _has_room(batch) and not jobs.empty():
                if (job := jobs.get()) is None:
                    self._run(batch)
                    return
                batch.append(job)
            self._run(batch)

    def _run(self, batch: list[_Job]) -> None:
        # Skip requests whose client has disconnected.
        batch = [job for job in batch if not job[1].cancelled()]
        if not batch:
            return
        self._on_run()
        try:
            rows = self._spread([text for texts, _ in batch for text in texts])
        except Exception as error:  # noqa: BLE001 - raised in the request's handler
            if len(batch) == 1:
                _settle(batch[0][1], error)
            else:
                # Run each request alone, so that one request's texts do not fail the others.
                for job in batch:
                    self._run([job])
            return
        start = 0
        for texts, future in batch:
            _settle(future, rows[start : start + len(texts)])
            start += len(texts)


def _has_room(batch: list[_Job]) -> bool:
    lengths = [len(text) for texts, _ in batch for text in texts]
    return len(lengths) < _TEXTS_PER_RUN and sum(lengths) < _CHARACTERS_PER_RUN


def _settle(
    future: asyncio.Future[NDArray[np.float32]], outcome: NDArray[np.float32] | Exception
) -> None:
    def settle() -> None:
        if future.done():
            return
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    try:
        future.get_loop().call_soon_threadsafe(settle)
    except RuntimeError:
        # The server's loop was closed while the model was running.
        return
