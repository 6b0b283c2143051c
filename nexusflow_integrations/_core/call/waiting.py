"""A user's thread waits for the event loop only in a ``SimpleQueue``.

Futures, events and conditions run Python code while they hold a lock, and a signal handler may
interrupt that code. A handler that embeds would wait there for the loop, while the loop waits for
the lock. A handler that raises, as Ctrl-C does, could leave the lock taken for ever, and the loop,
which serves all clients, would then never run again. The operations of a ``SimpleQueue`` hold no
lock while a handler runs.
"""

from __future__ import annotations

from queue import Empty, SimpleQueue
from typing import TypeVar

from nexusflow_integrations._core.clock import monotonic

T = TypeVar("T")

HEED_SIGNALS = 0.5
"""Maximum seconds until a waiting thread handles a signal that did not end its wait.

Such a signal was received by another thread, or came right before the wait. On Windows, no signal
ends a wait.
"""


def next_item(news: SimpleQueue[T], until: float = float("inf")) -> T:
    """Wait for the next item and return it.

    Raises:
        queue.Empty: There was none until the monotonic time ``until``.
    """
    while True:
        left = until - monotonic()
        try:
            return news.get(timeout=max(0.0, min(left, HEED_SIGNALS)))
        except Empty:
            if left <= HEED_SIGNALS:
                raise
