"""The counts of the local server."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ServerStats:
    """A snapshot of the counts since the start or the last reset.

    Requests are those to ``/v1/embeddings``, including failed ones. Texts and tokens are those of
    requests that passed validation and quotas, which the service would bill even if the client
    disconnected before the response.
    """

    requests: int = 0
    texts: int = 0
    tokens: int = 0
    statuses: dict[int, int] = field(default_factory=dict)
    """Number of responses by HTTP status; 499 means that the client had disconnected."""
    in_flight: int = 0
    """Embedding requests in progress."""
    max_in_flight: int = 0
    """Largest number of embedding requests in progress at the same time."""
    connections: int = 0
    """Number of accepted TCP connections; 0 if a server other than `LocalServer` runs the app."""
    model_runs: int = 0
    """Number of runs of the model; several requests may share one run."""
    received: tuple[str, ...] = ()
    """The texts of accepted requests, in order of arrival, with ``record_texts=True``."""

    @property
    def ok(self) -> int:
        """Requests answered with 200."""
        return self.statuses.get(200, 0)

    @property
    def duplicates(self) -> dict[str, int]:
        """How often each text was billed, for texts that were billed more than once.

        Needs ``record_texts=True``.
        """
        return {text: n for text, n in Counter(self.received).items() if n > 1}


class Counts:
    """The running counts behind `ServerStats`; thread-safe."""

    def __init__(self, *, record_texts: bool = False) -> None:
        self._unlock()
        self._record = record_texts
        self._in_flight = 0
        self._clear()

    def _clear(self) -> None:
        self._requests = 0
        self._texts = 0
        self._tokens = 0
        self._statuses: Counter[int] = Counter()
        self._max_in_flight = self._in_flight
        self._connections = 0
        self._model_runs = 0
        self._received: list[str] = []

    def _unlock(self) -> None:
        # Re-entrant: a signal handler may read the counts while the interrupted thread does.
        self._lock = threading.RLock()

    def forget(self) -> None:
        """In a forked child, keep the counts, except that no request is in flight."""
        self._unlock()  # another thread may have held the lock
        self._in_flight = 0

    def reset(self) -> None:
        """Set every count to zero, except the requests in flight."""
        with self._lock:
            self._clear()

    def connected(self) -> None:
        with self._lock:
            self._connections += 1

    def model_ran(self) -> None:
        with self._lock:
            self._model_runs += 1

    def request_began(self) -> None:
        with self._lock:
            self._requests += 1
            self._in_flight += 1
            self._max_in_flight = max(self._max_in_flight, self._in_flight)

    def request_ended(self, status: int | None) -> None:
        """Count a response; ``status`` is None if it was interrupted."""
        with self._lock:
            self._in_flight -= 1
            if status is not None:
                self._statuses[status] += 1

    def accepted(self, texts: list[str], tokens: int) -> None:
        with self._lock:
            self._texts += len(texts)
            self._tokens += tokens
            if self._record:
                self._received.extend(texts)

    def snapshot(self) -> ServerStats:
        with self._lock:
            return ServerStats(
                requests=self._requests,
                texts=self._texts,
                tokens=self._tokens,
                statuses=dict(self._statuses),
                in_flight=self._in_flight,
                max_in_flight=self._max_in_flight,
                connections=self._connections,
                model_runs=self._model_runs,
                received=tuple(self._received),
            )
