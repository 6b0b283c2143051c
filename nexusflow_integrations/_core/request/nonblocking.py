"""One connection of the event loop, over which requests are sent one after another.

aiohttp opens the connection and parses the responses. What aiohttp creates in between for each
request (a request, a response, a task, a timer) takes more time than everything else, so the
connection is taken over once it is open.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from nexusflow_integrations._core.request.message import Head, Response


class LoopConnection(asyncio.Protocol):
    """An open connection to a server.

    Args:
        opened: The connection of aiohttp, whose transport is used.

    Attributes:
        idle_since: When the last exchange ended, in monotonic seconds.
    """

    def __init__(self, opened: Any) -> None:
        self.idle_since = 0.0
        self._opened = opened
        self._transport: asyncio.Transport = opened.transport
        self._response: Response | None = None
        self._ended: asyncio.Future[bool] | None = None  # whether the response is complete
        self._until = 0.0
        # One timer serves many exchanges: to set and cancel one for each takes longer.
        self._timer: asyncio.TimerHandle | None = None
        self._may_be_used = True
        self._transport.set_protocol(self)

    @property
    def is_free(self) -> bool:
        """Whether the next request can be sent: nothing else arrived or is still being sent.

        With TLS, what the socket still has to send is not known; it goes before the next request.
        """
        if not self._may_be_used or self._transport.is_closing():
            return False
        try:
            return not self._transport.get_write_buffer_size()
        except AttributeError:  # Python 3.10: TLS has lost the connection
            return False

    async def exchange(self, head: Head, body: bytes, timeout: float) -> Response | None:
        """Send a request; return the complete response, or ``None`` after ``timeout`` seconds.

        The response may arrive before the whole request is sent.

        Raises:
            OSError: The connection broke.
            ClientError, NotHttp: See ``Response.feed``.
        """
        loop = asyncio.get_running_loop()
        response = self._response = Response()
        ended = self._ended = loop.create_future()
        self._until = loop.time() + timeout
        if self._timer is None or self._timer.when() > self._until:
            self._set_timer(loop)
        try:
            # asyncio logs an unexpected error with its traceback. A tool that shows the variables
            # of the frames would show the key in bytes; of a memoryview, it shows only the address.
            self._transport.write(memoryview(head.with_body(body)))
            return response if await ended else None
        finally:
            self._response = self._ended = None

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        self._cancel_timer()
        self._timer = loop.call_at(self._until, self._time_out, loop)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._ended is None:
            return
        if loop.time() < self._until:  # the timer was set for an earlier exchange
            self._set_timer(loop)
        else:
            self._end(False)

    def data_received(self, data: bytes) -> None:
        self._feed(data)

    def eof_received(self) -> None:
        self._may_be_used = False
        self._feed(b"")

    def connection_lost(self, exc: Exception | None) -> None:
        self._may_be_used = False
        if exc is None:
            self._feed(b"")
        else:
            self._end(aiohttp.ClientOSError(*exc.args))

    def _feed(self, data: bytes) -> None:
        if self._response is None or self._ended is None or self._ended.done():
            # If the connection were used again, these bytes would be read as the response to the
            # next request, which would get the vectors of another request.
            self._may_be_used = False
            if self._ended is None:
                self._transport.abort()  # nothing else would end an idle connection soon
            return
        try:
            if self._response.feed(data):
                self._end(True)
        except Exception as error:  # noqa: BLE001 - raised in `exchange`
            self._end(error)

    def _end(self, outcome: bool | Exception) -> None:
        if self._ended is None or self._ended.done():
            return
        if isinstance(outcome, Exception):
            self._ended.set_exception(outcome)
        else:
            self._ended.set_result(outcome)

    def close(self) -> None:
        self._cancel_timer()
        self._transport.abort()  # closing a TLS connection would wait for the peer
        self._opened.close()
