"""What all ways to send a request share, and the senders that use a user's own client.

A user's client from httpx (or httpx2, whose classes look the same) is used unchanged and never
closed: a sync client in worker threads, an async client on the event loop of the call.

The ``timeout`` covers everything: pool, connection, headers and the whole body, even if the body
arrives slowly. Bodies are read up to ``MAX_RESPONSE_BYTES``. Redirects are not followed.
"""

from __future__ import annotations

import asyncio
import operator
import os
import re
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from inspect import CORO_CREATED, getcoroutinestate
from typing import Any, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass
from weakref import WeakSet

from nexusflow_integrations._core import forks
from nexusflow_integrations._core.hosts import host_of, is_loopback
from nexusflow_integrations._core.request.wire import MAX_RESPONSE_BYTES, Answer, TransportFault
from nexusflow_integrations._core.secret import Secret
from nexusflow_integrations.errors import ConfigurationError


class Sender(Protocol):
    """Sends the requests of one call."""

    async def send(self, body: bytes, timeout: float) -> Answer | TransportFault:
        """Return the response to ``body``, or the fault, within ``timeout`` seconds."""


@dataclass(frozen=True)
class Target:
    """The URL and headers of a call's requests; secret headers are revealed only when sent."""

    url: str
    headers: Mapping[str, str | Secret]

    def revealed(self) -> dict[str, str]:
        """Return the headers in plain text, for sending only; do not store them."""
        return {
            name: value.reveal() if isinstance(value, Secret) else value
            for name, value in self.headers.items()
        }


TOO_LARGE = TransportFault("the response is larger than 16 MiB; it was not read")

NOT_HTTP = TransportFault("the response is not valid HTTP")

KEEPALIVE = 15.0
"""Seconds until an idle connection is closed; gateways usually close it later."""


def proxy_for(url: str) -> Secret | None:
    """Return the proxy for ``url`` from the environment (HTTPS_PROXY, NO_PROXY, ...).

    Raises:
        ConfigurationError: The proxy is not an http proxy. The message leaves out its address,
            which may contain a password.
    """
    if _is_on_this_machine(url):
        return None  # use no proxy: without TLS, a proxy would see the key
    found = _proxy_for(url, tuple(map(os.environ.get, _PROXY_VARIABLES)))
    if isinstance(found, str):
        raise ConfigurationError(found)
    return found


@lru_cache(maxsize=64)
def _is_on_this_machine(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and is_loopback(parts.hostname or "")


_PROXY_VARIABLES = [
    name
    for lower in ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
    for name in (lower, lower.upper())
]


_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE | re.ASCII)


@lru_cache(maxsize=64)
def _proxy_for(url: str, _variables: tuple[str | None, ...]) -> Secret | str | None:
    """Return the proxy, or an error message: the frames of an exception would show the proxy."""
    # The result is cached until a variable changes: reading the proxy variables takes a third of
    # the time of a query.
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy is None or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    # Match only at the beginning: a password may contain "://", and the message shows the scheme.
    found = _SCHEME.match(proxy.strip())
    scheme = found[1].lower() if found else ""
    address = proxy.strip()[found.end() if found else 0 :]
    if scheme not in ("", "http", "https"):
        return (
            f"the environment names a {scheme[:20]} proxy, but only http proxies are supported:"
            " pass http_client=httpx.Client(proxy=...), or unset the variable"
        )
    place = address.rpartition("@")[2].partition("/")[0]
    if host_of(place) is None:
        return (
            "the environment names a proxy that does not look like http://proxy.example:3128:"
            " correct or unset the variable"
        )
    return Secret(f"{scheme or 'http'}://{address}")


def timed_out(timeout: float) -> TransportFault:
    return TransportFault(f"no complete response within {timeout:.3g} s", timed_out=True)


def certificate_fault(error: BaseException, proxy: str | None = None) -> TransportFault:
    """Return why TLS failed with the server, or with ``proxy``."""
    if "CERTIFICATE_VERIFY_FAILED" in str(error) or isinstance(error, ssl.CertificateError):
        detail = getattr(error, "verify_message", "") or "set SSL_CERT_FILE to trust another CA"
        return TransportFault(
            f"{proxy or 'the server'}'s TLS certificate was not accepted: {detail}",
            retryable=False,
            maybe_billed=False,
        )
    return TransportFault(
        "the TLS handshake failed; does the server use https on this port?"
        if proxy is None
        else f"the TLS handshake with {proxy} failed; does it use https on this port?",
        retryable=False,
        maybe_billed=False,
    )


def broken_off(error: BaseException) -> str:
    # Show only the type: messages of HTTP libraries may quote headers, and thus the key.
    return f"the connection broke before the response was complete ({type(error).__name__})"


_used: WeakSet[Any] = WeakSet()
"""Users' clients that have sent requests, in this process or a parent process."""
_inherited: WeakSet[Any] = WeakSet()
"""Users' clients that were used before a fork: their connections belong to the parent."""
forks.in_child(lambda: _inherited.update(_used))


def _note_use(client: Any) -> None:
    """Record the use of a client; refuse a client that was used before a fork.

    Raises:
        ConfigurationError: The client was used before a fork, so both processes would read from its
            connections.
    """
    try:
        is_inherited = client in _inherited
        _used.add(client)
    except TypeError:  # the client cannot be hashed or weakly referenced
        return
    if is_inherited:
        raise ConfigurationError(
            "the http client that was passed in was used before this process was forked, and its"
            " connections belong to the parent: create another client in this process"
        )


class HttpxSender:
    """Sends through the user's ``httpx.Client`` (or a compatible client), in worker threads."""

    def __init__(self, client: Any, target: Target) -> None:
        _note_use(client)
        self._client = client
        self._target = target

    async def send(self, body: bytes, timeout: float) -> Answer | TransportFault:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Answer | TransportFault] = loop.create_future()
        # Use one daemon thread for each request: the threads of an executor would delay the
        # interpreter's exit until the slowest server has answered.
        threading.Thread(
            target=self._answer, args=(body, timeout, answered), name="nexusflow-httpx", daemon=True
        ).start()
        # Do not use `wait_for`: before Python 3.12, it may lose a cancellation if the response has
        # arrived.
        timer = loop.call_later(timeout, _settle, answered, timed_out(timeout))
        try:
            return await answered
        finally:
            timer.cancel()

    def _answer(self, body: bytes, timeout: float, answered: asyncio.Future[Any]) -> None:
        outcome: Answer | TransportFault | BaseException
        try:
            outcome = self._send(body, timeout)
        except (asyncio.CancelledError, GeneratorExit) as error:
            outcome = _of_client(error)  # in the waiting task, the error would cancel the call
        except BaseException as error:  # noqa: BLE001 - raised in the waiting task
            outcome = error
        with suppress(RuntimeError):  # the loop was closed
            answered.get_loop().call_soon_threadsafe(_settle, answered, outcome)

    def _send(self, body: bytes, timeout: float) -> Answer | TransportFault:
        try:
            request = self._client.build_request(
                "POST",
                self._target.url,
                content=body,
                headers=self._target.revealed(),
                timeout=timeout,
            )
            response = self._client.send(request, stream=True, follow_redirects=False)
            if response.is_stream_consumed:
                return _httpx_read(response)
            try:
                parts = bytearray()
                for part in response.iter_raw():
                    parts += part
                    if len(parts) > MAX_RESPONSE_BYTES:
                        return TOO_LARGE
            finally:
                response.close()
            return _httpx_answer(response, parts)
        except Exception as error:  # noqa: BLE001 - errors of httpx and httpx2 are recognised by name
            return _httpx_fault(error, timeout)


def _settle(
    answered: asyncio.Future[Any], outcome: Answer | TransportFault | BaseException
) -> None:
    if answered.done():
        return
    if isinstance(outcome, BaseException):
        answered.set_exception(outcome)
    else:
        answered.set_result(outcome)


class AsyncHttpxSender:
    """Sends through an ``httpx.AsyncClient`` (or a compatible client), on the user's event loop."""

    def __init__(self, client: Any, loop: asyncio.AbstractEventLoop, target: Target) -> None:
        _note_use(client)
        self._client = client
        self._loop = loop
        self._target = target

    async def send(self, body: bytes, timeout: float) -> Answer | TransportFault:
        sending = self._send(body, timeout)
        try:
            work = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(sending, self._loop))
            try:
                # `wait_for` could lose a cancellation.
                done, _ = await asyncio.wait([work], timeout=timeout)
                if work.cancelled():  # by the client, or by the user's loop
                    return _of_client(asyncio.CancelledError())
                return work.result() if done else timed_out(timeout)
            finally:
                work.cancel()
        except RuntimeError:
            return TransportFault("the event loop of this call has ended", retryable=False)
        finally:
            if getcoroutinestate(sending) == CORO_CREATED:
                sending.close()  # the user's loop ended before the coroutine started

    async def _send(self, body: bytes, timeout: float) -> Answer | TransportFault:
        try:
            request = self._client.build_request(
                "POST",
                self._target.url,
                content=body,
                headers=self._target.revealed(),
                timeout=timeout,
            )
            response = await self._client.send(request, stream=True, follow_redirects=False)
            if response.is_stream_consumed:
                return _httpx_read(response)
            try:
                parts = bytearray()
                async for part in response.aiter_raw():
                    parts += part
                    if len(parts) > MAX_RESPONSE_BYTES:
                        return TOO_LARGE
            finally:
                await response.aclose()
            return _httpx_answer(response, parts)
        except GeneratorExit as error:
            return _of_client(error)
        except Exception as error:  # noqa: BLE001 - errors of httpx and httpx2 are recognised by name
            return _httpx_fault(error, timeout)


def _httpx_read(response: Any) -> Answer:
    """Return an ``Answer`` for a response whose body was already read, as by a mock transport."""
    names = {name.lower(): value for name, value in response.headers.items()}
    names.pop("content-encoding", None)  # the body is already decoded
    return Answer(operator.index(response.status_code), names, bytes(response.content))


def _httpx_answer(response: Any, body: bytes | bytearray) -> Answer:
    names = {name.lower(): value for name, value in response.headers.items()}
    return Answer(operator.index(response.status_code), names, bytes(body))


def _httpx_fault(error: Exception, timeout: float) -> TransportFault:
    """Classify an exception of httpx or httpx2, whose unrelated classes have equal names."""
    names = {cls.__name__ for cls in type(error).__mro__}
    if "TimeoutException" in names:
        return timed_out(timeout)
    if _caused_by_certificate(error):
        return certificate_fault(_root(error))
    if names & {"InvalidURL", "UnsupportedProtocol", "LocalProtocolError"}:
        return TransportFault("the request is not valid HTTP", retryable=False, maybe_billed=False)
    if names & {"ConnectError", "ProxyError"}:
        return TransportFault(
            f"cannot connect to {_host_of(error)} with the http client or proxy that was passed in:"
            f" {_root(error)}",
            maybe_billed=False,
        )
    if names & {"TransportError", "RequestError", "OSError"}:
        return TransportFault(broken_off(error))
    return _of_client(error)


def _host_of(error: Any) -> str:
    try:
        return str(error.request.url.host)
    except (AttributeError, RuntimeError):  # the error of a mock transport may have no request
        return "the server"


def _of_client(error: BaseException) -> TransportFault:
    return TransportFault(
        f"the http client that was passed in failed ({type(error).__name__})", retryable=False
    )


def _root(error: BaseException) -> BaseException:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _caused_by_certificate(error: BaseException) -> bool:
    return "CERTIFICATE_VERIFY_FAILED" in str(error) or isinstance(_root(error), ssl.SSLError)
