"""Runs the server in a background thread, or in the foreground until Ctrl-C."""

from __future__ import annotations

import asyncio
import atexit
import os
import socket
import sys
import threading
from contextlib import suppress
from ipaddress import ip_address
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .arguments import text, whole
from .encoder import DEFAULT_MODEL, MODELS
from .listening import listen
from .model_files import need
from .quotas import Quotas
from .stats import ServerStats

if TYPE_CHECKING:
    from .app import LocalApi
    from .protocol import TooLong
    from .sizes import Sizes

_ANY_KEY = "sk-air-local"
_START_PATIENCE = 30.0
_STOP_PATIENCE = 10.0
_GRACE = 2
_ACCESS_LOG: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(asctime)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "loggers": {"uvicorn.access": {"handlers": ["stderr"], "level": "INFO", "propagate": False}},
}
"""Prints each request; its default stream is standard error."""


class LocalServer:
    """The local server in a background thread, for ``with`` and ``async with``.

    The port is open when the block begins. The model loads in the background; requests that arrive
    earlier wait for the model. When the block ends, requests in progress are finished; when it ends
    with an error, such as Ctrl-C, they are dropped. Several servers may run at once. A forked child
    cannot use the server: the child's copy is closed.

    Args:
        model: The model to run, one of `MODELS`.
        host: Address to listen on.
        port: Port to listen on; 0 for a free one.
        api_key: The only key that is accepted; None accepts any non-empty Bearer key.
        requests_per_minute: Limit on requests, enforced each second; None for no limit.
        tokens_per_minute: Limit on tokens, enforced each second; None for no limit.
        concurrency: Maximum number of requests in progress at the same time; None for no limit.
        growth: Maximum number of requests in one second, as a multiple of the busiest of the five
            seconds before (ten are always allowed); None for no limit.
        latency_ms: Milliseconds added to every response, to simulate a distant service.
        body_limit: Maximum bytes of a request body; a larger one gets a 413 response.
        record_texts: Whether `stats` keeps the received texts.
        threads: CPU threads of the model.
        too_long: What happens to a text of more than 8,192 tokens: ``"refuse"`` responds with 400,
            as users of the service have seen; ``"truncate"`` cuts the text, as the service
            documents.
        sizes: ``"cut"``: a smaller vector is the first part of the largest, scaled to unit length.
            ``"independent"``: it is not. The service does not document which of these it does.

    Raises:
        ValueError: The model is unknown, or a number is out of range.
        ImportError: A package that the server or the model needs is missing.
        nexusflow_integrations.local.model_files.ModelFileError: A model file is missing or does
            not have the expected content.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str | None = None,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        concurrency: int | None = None,
        growth: float | None = None,
        latency_ms: float = 0.0,
        body_limit: int = 1 << 20,
        record_texts: bool = False,
        threads: int = 1,
        too_long: TooLong = "refuse",
        sizes: Sizes = "cut",
    ) -> None:
        need("LocalServer", "starlette", "uvicorn", "numpy", "orjson", "pybase64")
        from .app import Key, LocalApi

        key = None if api_key is None else Key(api_key)
        del api_key  # so that the frames of an error do not show it
        self._api: LocalApi = LocalApi(
            model=model,
            threads=threads,
            api_key=key,
            quotas=Quotas(requests_per_minute, tokens_per_minute, concurrency, growth),
            body_limit=body_limit,
            latency_ms=latency_ms,
            record_texts=record_texts,
            too_long=too_long,
            sizes=sizes,
        )
        self._host = text("host", host)
        self._asked_port = whole("port", port, 0, 65_535)
        self._socket: socket.socket | None = None
        self._server: Any = None
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        if "_socket" not in vars(self):
            return "<LocalServer>"  # for a traceback, if the constructor failed
        where = self.base_url if self._socket is not None else "not running"
        return f"<LocalServer {self.model} {where}>"

    @property
    def model(self) -> str:
        """The model that runs, one of `MODELS`."""
        return self._api.model

    @property
    def host(self) -> str:
        """The address that the server listens on."""
        return self._host

    @property
    def port(self) -> int:
        """The port that the server listens on.

        Raises:
            RuntimeError: The server is not running.
        """
        if self._socket is None:
            raise RuntimeError("The server is not running: use it in a `with` block.")
        port: int = self._socket.getsockname()[1]
        return port

    @property
    def base_url(self) -> str:
        """The base URL for a client, ``http://127.0.0.1:PORT/v1``."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}/v1"

    @property
    def api_key(self) -> str:
        """A key that the server accepts: ``api_key``, or a placeholder if any key is accepted."""
        return self._api.api_key.text if self._api.api_key is not None else _ANY_KEY

    @property
    def stats(self) -> ServerStats:
        """A snapshot of the counts since the start or the last `reset_stats`."""
        return self._api.counts.snapshot()

    def reset_stats(self) -> None:
        """Set the counts to zero."""
        self._api.counts.reset()

    def start(self) -> LocalServer:
        """Open the port and serve in a background thread; return when the server is ready.

        Raises:
            CannotListenError: The port is in use or not permitted, or the host is not an address
                of this machine; it is an `OSError`.
            RuntimeError: The server is running already.
        """
        if self._thread is not None:
            raise RuntimeError("The server is running already.")
        self._socket = listen(self._host, self._asked_port)
        server, started = _uvicorn(self._api)
        self._server = server
        self._thread = threading.Thread(
            target=server.run,
            kwargs={"sockets": [self._socket]},
            name=f"local-server-{self.port}",
            daemon=True,
        )
        _RUNNING.add(self)
        self._thread.start()
        if not started.wait(_START_PATIENCE):
            self.stop()
            raise RuntimeError("The server did not start; see its log.")
        return self

    def stop(self) -> None:
        """Finish the requests in progress and close the port; may be called again."""
        server, thread, listener = self._server, self._thread, self._socket
        self._server = self._thread = self._socket = None
        _RUNNING.discard(self)
        if server is None or thread is None or listener is None:
            return
        server.should_exit = True
        thread.join(_STOP_PATIENCE)
        listener.close()
        self._api.runner.stop()

    def _hang_up(self) -> None:
        """Close all connections: `stop` then has no request to wait for."""
        if self._server is not None:
            self._server.hang_up()

    def __enter__(self) -> LocalServer:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is not None:  # such as Ctrl-C: nobody waits for the responses
            self._hang_up()
        self.stop()

    async def __aenter__(self) -> LocalServer:
        return await asyncio.to_thread(self.start)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is not None:
            self._hang_up()
        await asyncio.to_thread(self.stop)

    def _forget(self) -> None:
        """In a forked child, drop the objects that belong to the parent."""
        self._api.counts.forget()
        if self._socket is not None and self._socket.fileno() >= 0:
            # Replace the descriptor instead of closing it: objects of the parent's loop still hold
            # its number, which must not be reused for another file of the child.
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, self._socket.fileno(), inheritable=False)
            os.close(null)
        self._server = self._thread = self._socket = None


_RUNNING: set[LocalServer] = set()


def _stop_all() -> None:
    for server in list(_RUNNING):
        server.stop()


def _forget_all() -> None:
    for server in list(_RUNNING):
        server._forget()
    _RUNNING.clear()


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def serve(
    host: str = "127.0.0.1",
    port: int = 8765,
    *,
    model: str = DEFAULT_MODEL,
    api_key: str | None = None,
    requests_per_minute: float | None = None,
    tokens_per_minute: float | None = None,
    concurrency: int | None = None,
    growth: float | None = None,
    latency_ms: float = 0.0,
    body_limit: int = 1 << 20,
    threads: int = 1,
    sizes: Sizes = "cut",
    log_requests: bool = False,
) -> None:
    """Print the address and the model, then serve in the foreground until Ctrl-C.

    The arguments and errors are those of `LocalServer`, and also these:

    Args:
        log_requests: Print a line for each request on standard error: method, path and status.

    Raises:
        CannotListenError: The port is in use or not permitted, or the host is not an address of
            this machine; it is an `OSError`.
    """
    need("nexusflow serve", "starlette", "uvicorn", "numpy", "orjson", "pybase64")
    from .app import Key, LocalApi

    key = None if api_key is None else Key(api_key)
    del api_key  # so that the frames of an error do not show it
    api = LocalApi(
        model=model,
        threads=threads,
        api_key=key,
        quotas=Quotas(requests_per_minute, tokens_per_minute, concurrency, growth),
        body_limit=body_limit,
        latency_ms=latency_ms,
        sizes=sizes,
    )
    listener = listen(text("host", host), whole("port", port, 0, 65_535))
    try:
        said = _start_lines(host, listener.getsockname()[1], model, any_key=key is None)
        print(said, file=sys.stderr, flush=True)
        server, _ = _uvicorn(api, log_requests=log_requests)
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            # uvicorn has shut down and raises the signal again; stopping is not an error.
            print("Stopped.", file=sys.stderr)
    finally:
        api.runner.stop()
        listener.close()


def _start_lines(host: str, port: int, model: str, *, any_key: bool) -> str:
    # An address that means all addresses cannot be connected to on every system.
    mine = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    url = f"http://{f'[{mine}]' if ':' in mine else mine}:{port}/v1"
    lines = [
        f"Local embeddings at {url}; press Ctrl-C to stop.",
        f"Model: {model} ({MODELS[model]}), a local stand-in for text-embedding-v4.",
    ]
    if any_key:
        lines[-1] += " Any key is accepted."
        if _is_loopback(mine):  # on a line of its own, so that it can be pasted
            lines[-1] += " In another terminal:"
            lines.append(f"export NEXUSFLOW_BASE_URL={url} NEXUSFLOW_API_KEY={_ANY_KEY}")
    if not _is_loopback(host):
        there = url if host == mine else f"http://ADDRESS:{port}/v1"
        lines.append(
            f'Clients on other machines need base_url="{there}" and allow_http=True, because plain'
            " http does not protect key and texts."
        )
    return "\n".join(lines)


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def _uvicorn(api: LocalApi, *, log_requests: bool = False) -> tuple[Any, threading.Event]:
    """Return uvicorn's server for the app, and an event that is set when it is ready."""
    import uvicorn
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    counts, started = api.counts, threading.Event()
    protocol: Any = AutoHTTPProtocol

    class CountedProtocol(protocol):  # type: ignore[misc]  # of h11 or httptools
        def connection_made(self, transport: Any) -> None:
            counts.connected()
            super().connection_made(transport)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            self._loop = asyncio.get_running_loop()
            await super().startup(sockets)
            # Load the model only now: loading keeps the interpreter busy, and the port should open
            # quickly.
            api.runner.start()
            started.set()

        def hang_up(self) -> None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._close_connections)

        def _close_connections(self) -> None:
            for connection in list(self.server_state.connections):
                connection.transport.abort()

    config = uvicorn.Config(
        api.app(),
        http=CountedProtocol,
        ws="none",
        lifespan="off",
        log_config=_ACCESS_LOG if log_requests else None,
        log_level="info" if log_requests else "warning",
        access_log=log_requests,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=_GRACE,
    )
    return Server(config), started
