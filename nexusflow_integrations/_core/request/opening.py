"""Sends on the background loop, over connections that it opens for the callers' loops.

A call on its caller's loop must not wait for a connection, because other calls may want its texts.
So it is handed to the background loop, which opens the connection and sends. The connection then
stays idle, so that the next call can be sent on its caller's loop.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nexusflow_integrations._core.clock import monotonic
from nexusflow_integrations._core.request.polled import can_poll

if TYPE_CHECKING:
    from nexusflow_integrations._core.request.blocking import BlockingSender
    from nexusflow_integrations._core.request.message import Origin
    from nexusflow_integrations._core.request.transport import Sender
    from nexusflow_integrations._core.request.wire import Answer, TransportFault


class OpeningSender:
    """Sends over a connection of ``here``, or with ``otherwise`` if there is none.

    Args:
        here: Has an idle connection or opens one.
        otherwise: Sends if ``here`` could not open a connection, or the loop cannot poll.
        most: With this number of connections to the server, ``here`` opens no further one.
        end_one: Closes an idle connection of ``otherwise``. It is called before ``here`` opens one,
            because some servers serve only one connection at a time.
    """

    def __init__(
        self,
        here: BlockingSender,
        otherwise: Sender,
        most: int,
        end_one: Callable[[Origin], bool],
    ) -> None:
        self._here = here
        self._otherwise = otherwise
        self._most = most
        self._end_one = end_one

    async def send(self, body: bytes, timeout: float) -> Answer | TransportFault:
        if not can_poll(asyncio.get_running_loop()):
            return await self._otherwise.send(body, timeout)
        began = monotonic()
        connection = await self._here.opened(timeout, self._most, self._end_one)
        if connection is None:
            return await self._otherwise.send(body, timeout - (monotonic() - began))
        return await self._here.send_on_loop(connection, body, timeout, began)


async def opened_on_loop(
    origin: Origin, address: tuple[Any, ...], context: ssl.SSLContext
) -> socket.socket:
    """Return a socket that is connected to ``address``, with TLS if ``origin`` needs it.

    Raises:
        OSError: The connection could not be opened.
    """
    host, _, with_tls = origin
    raw = socket.socket(socket.AF_INET6 if len(address) > 2 else socket.AF_INET)
    try:
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, address)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if with_tls:
            raw = secured = context.wrap_socket(
                raw, server_hostname=host, do_handshake_on_connect=False
            )
            await _shake_hands(secured)
    except BaseException:
        raw.close()
        raise
    return raw


async def _shake_hands(secured: ssl.SSLSocket) -> None:
    loop = asyncio.get_running_loop()
    while True:
        ready = loop.create_future()
        try:
            secured.do_handshake()
        except ssl.SSLWantReadError:
            watch, end = loop.add_reader, loop.remove_reader
        except ssl.SSLWantWriteError:
            watch, end = loop.add_writer, loop.remove_writer
        else:
            return
        watch(secured, _settle, ready)
        try:
            await ready
        finally:
            end(secured)


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
