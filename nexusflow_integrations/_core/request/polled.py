"""An exchange that an event loop drives by polling the socket.

A second loop can take over at any time: whichever loop finds the socket ready sends and receives
what is possible. So the exchange ends even if the first loop is blocked.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from threading import get_ident
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import aiohttp

from nexusflow_integrations._core.clock import monotonic
from nexusflow_integrations._core.outcome import Outcome
from nexusflow_integrations._core.request.message import NotHttp, Response, fault
from nexusflow_integrations._core.request.transport import TOO_LARGE, timed_out
from nexusflow_integrations._core.request.wire import Answer, TransportFault
from nexusflow_integrations._core.signals import raised_by_signal_handler

if TYPE_CHECKING:
    from nexusflow_integrations._core.request.blocking import Connection

T = TypeVar("T")

BUFFER = 1 << 16
"""Bytes to read at once."""
MOST_READS = 8
"""Maximum reads of one step, so that a server that sends without end does not block the loop."""
MOST_BEHIND = 10.0
"""Seconds by which the clock of a loop may differ; uvloop reads it once per iteration."""
SOON = 0.001
"""Seconds until the next attempt if the other loop is using the exchange."""
CHECK_TURN_AFTER = 0.1
"""Seconds to wait for the turn before checking whether a thread is left that can give it back."""
MOST_LATE = 8
"""Maximum steps after the timeout, in which a loop that was blocked reads what has arrived."""
DESCRIPTOR_RETRY = 0.1
"""Seconds until the next attempt if no file descriptor is left."""
NOT_READY = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
"""Errors of a socket that could not send or receive anything now."""


def can_poll(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether ``loop`` can poll sockets and keep a timeout.

    The default loop of Windows cannot poll. Tools that freeze time in tests stop a loop's clock.
    """
    polls = type(loop).add_reader is not asyncio.AbstractEventLoop.add_reader
    return polls and abs(loop.time() - monotonic()) < MOST_BEHIND


class PolledExchange(Generic[T]):
    """One request and its response. Create it on the event loop that will run it, the first loop.

    Args:
        connection: An open connection on which nothing is in flight.
        request: The whole request. It contains the key, which a tool that shows the variables of a
            frame does not find in a memoryview.
        timeout: Seconds for the exchange.
        use: Called with the outcome, in the thread of the loop that completes the exchange, unless
            the exchange is abandoned. It returns the result.
        release: Called at the end, with whether the connection can be used again.
    """

    def __init__(
        self,
        connection: Connection,
        request: memoryview,
        timeout: float,
        use: Callable[[Answer | TransportFault], T],
        release: Callable[[bool], object],
        began: float | None = None,
    ) -> None:
        self._socket = connection.nonblocking()
        self._request = request
        self._response = Response()
        self._timeout = timeout
        self._until = (monotonic() if began is None else began) + timeout
        self._use = use
        self._release = release
        self._loop = asyncio.get_running_loop()
        self._result: asyncio.Future[Outcome[T]] = self._loop.create_future()
        self._first: _Poll | None = None
        self._second: _SecondPoll | None = None
        # Empty, or the thread that has the turn. It is not a lock, because a signal handler that
        # comes right after its thread has taken the turn must see whose turn it is.
        self._turn: dict[str, tuple[int]] = {}
        self._starter: int | None = get_ident()
        self._is_over = False
        self._is_free = False
        self._late = 0
        self._process = os.getpid()

    @property
    def user(self) -> int | None:
        """The id of the thread that is using this object, or is going to start it."""
        turn = self._turn.get("of")
        return self._starter if turn is None else turn[0]

    @property
    def is_over(self) -> bool:
        """Whether the exchange has ended, or was abandoned."""
        return self._is_over

    @property
    def is_sent(self) -> bool:
        """Whether the whole request is in the buffer of the socket."""
        return not self._request

    @property
    def left(self) -> float:
        """Seconds until the timeout."""
        return max(0.0, self._until - monotonic())

    async def run(self) -> T:
        """Send the request and return the result.

        Raises:
            BaseException: What ``use`` raised, or an error of a signal handler.
        """
        # Receive only when the loop has run its other tasks, which may want the same text.
        self.step(self._loop, receive=False)
        if not self._is_over:
            self._first = _Poll(self, self._loop, self._socket.fileno())
        return (await self._result).result()

    def also_poll(self) -> None:
        """Let the running loop, the second one, drive the exchange, too."""
        if self._second is not None or self._is_over:
            return
        loop = asyncio.get_running_loop()
        if not self._take_turn():
            loop.call_later(SOON, self.also_poll)
            return
        try:
            if not self._is_over:
                self._second = _SecondPoll(self, loop, self._socket.fileno())
        except OSError:  # no descriptor is left
            loop.call_later(DESCRIPTOR_RETRY, self.also_poll)
        finally:
            self._turn.clear()

    def abandon(self) -> None:
        """End the exchange if it has not ended. Call this on the first loop."""
        if self._result.done() and not self._result.cancelled():
            return
        has_turn = self._wait_for_turn()
        if not self._is_over:
            self._is_over = True
            if self._second is not None:
                self._second.end_from(self._loop)
                self._second = None
        self._free(False)  # even if it is over: a loop that was closed does not call `_settle`
        if has_turn:
            self._turn.clear()

    def step(self, loop: asyncio.AbstractEventLoop, *, receive: bool = True) -> None:
        """On ``loop``, send and receive what is possible now; end the exchange if it is complete.

        If the other loop has the turn, do nothing: the socket stays ready, so this is called again.
        """
        if self._is_over or not self._take_turn():
            return
        try:
            if self._is_over:
                return
            outcome, is_reusable = self._advance(receive)
            if outcome is None:
                return
            self._is_over = True
            result = Outcome(self._use(outcome))
        except Exception as error:  # noqa: BLE001 - raised in the waiting task
            self._is_over = True
            self._end(loop, Outcome(error=error), is_reusable=False)
        except BaseException:  # Ctrl-C stops this loop
            self._is_over = True
            self._end(loop, Outcome(error=asyncio.CancelledError()), is_reusable=False)
            raise
        else:
            self._end(loop, result, is_reusable=is_reusable)
        finally:
            self._starter = None
            self._turn.clear()

    def _take_turn(self) -> bool:
        mine = (get_ident(),)
        return self._turn.setdefault("of", mine) is mine

    def _wait_for_turn(self) -> bool:
        """Take the turn when the other loop has given it back.

        Return ``False`` if nobody will: an interrupt came when this thread had just taken it, or
        this is a child process, in which the other loop's thread does not run.
        """
        until = monotonic() + CHECK_TURN_AFTER
        while not self._take_turn():
            of = self._turn.get("of", (None,))[0]
            is_lost = of == get_ident() or os.getpid() != self._process
            if is_lost and monotonic() > until:
                return False
            time.sleep(SOON)
        return True

    def _advance(self, receive: bool) -> tuple[Answer | TransportFault | None, bool]:
        """Return the outcome, if there is one yet, and whether the connection can be used again."""
        response = self._response
        has_more = False
        try:
            broken: OSError | None = None
            try:
                while self._request:
                    self._request = self._request[self._socket.send(self._request) :]
            except NOT_READY:
                pass
            except OSError as error:
                if not receive or raised_by_signal_handler(error):
                    raise
                broken = error
            # The server may respond before it has read the whole request, and even close then.
            with suppress(*NOT_READY):
                for _ in range(MOST_READS if receive else 0):
                    if response.feed(self._socket.recv(BUFFER)):
                        if response.is_too_large:
                            return TOO_LARGE, False
                        return response.answer(), response.is_reusable and self.is_sent
                has_more = receive
            if broken is not None:
                raise broken
        except (OSError, ValueError, aiohttp.ClientError, NotHttp) as error:
            if raised_by_signal_handler(error):
                raise
            return fault(error, self._timeout), False
        if self.left > 0:
            return None, False
        if has_more and self._late < MOST_LATE:
            self._late += 1
            return None, False
        return timed_out(self._timeout), False

    def _end(
        self, loop: asyncio.AbstractEventLoop, result: Outcome[T], *, is_reusable: bool
    ) -> None:
        """On ``loop``, end all polling and pass ``result`` on."""
        if loop is self._loop:
            self._settle(result, is_reusable)
        else:
            try:
                self._loop.call_soon_threadsafe(self._settle, result, is_reusable)
            except RuntimeError:  # the loop is closed
                self._free(False)
        if self._second is not None:
            self._second.end_from(loop)
            self._second = None

    def _settle(self, result: Outcome[T], is_reusable: bool) -> None:
        self._free(is_reusable)
        if not self._result.done():
            self._result.set_result(result)

    def _free(self, is_reusable: bool) -> None:
        if self._is_free:
            return
        self._is_free = True
        if self._first is not None:
            self._first.end()
            self._first = None  # break a cycle, which would keep the response in memory
        self._release(is_reusable)  # only now, because the next exchange polls the same descriptor


class _Poll:
    """Calls ``step`` of ``exchange`` on ``loop`` when the socket is ready, and at the timeout."""

    def __init__(
        self, exchange: PolledExchange[Any], loop: asyncio.AbstractEventLoop, descriptor: int
    ) -> None:
        self._exchange = exchange
        self._loop = loop
        self._descriptor = descriptor
        self._is_writer = not exchange.is_sent
        self._has_ended = False
        loop.add_reader(descriptor, self._step)
        if self._is_writer:
            loop.add_writer(descriptor, self._step)
        self._timer = loop.call_later(exchange.left, self._late)

    def _step(self) -> None:
        self._exchange.step(self._loop)
        if self._exchange.is_over:
            self.end()  # again, in case an interrupt has prevented it
        elif self._is_writer and self._exchange.is_sent:
            self._is_writer = False
            self._loop.remove_writer(self._descriptor)

    def _late(self) -> None:
        self._timer = self._loop.call_later(SOON, self._late)  # in case the other loop has the turn
        self._step()

    def end(self) -> None:
        if self._has_ended:
            return
        self._has_ended = True
        self._timer.cancel()
        with suppress(RuntimeError):  # the loop is closed
            self._loop.remove_reader(self._descriptor)
            if self._is_writer:
                self._loop.remove_writer(self._descriptor)


class _SecondPoll(_Poll):
    """A poll on the second loop, with a descriptor of its own.

    The first loop may close its descriptor, and the number may then belong to another socket.
    """

    def __init__(
        self, exchange: PolledExchange[Any], loop: asyncio.AbstractEventLoop, descriptor: int
    ) -> None:
        own = os.dup(descriptor)
        try:
            super().__init__(exchange, loop, own)
        except BaseException:
            os.close(own)
            raise

    def end(self) -> None:
        if not self._has_ended:
            super().end()
            os.close(self._descriptor)

    def end_from(self, loop: asyncio.AbstractEventLoop) -> None:
        """End on the second loop, from any loop; ``loop`` is the running one."""
        if loop is self._loop:
            self.end()
        else:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self.end)
