"""The HTTP application: handles routes, keys, bodies, quotas and headers."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import uuid
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar, get_args

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .arguments import flag, number, whole
from .encoder import DEFAULT_MODEL, MODELS, make_encoder
from .protocol import (
    MAX_TOKENS,
    MODEL,
    ApiError,
    EmbeddingsRequest,
    TooLong,
    check_lengths,
    parse_request,
    write_answer,
)
from .quotas import QuotaGate, Quotas
from .runner import ModelRunner
from .sizes import DEFAULT_SIZE, SIZES, Projection, Sizes, independent
from .stats import Counts

_T = TypeVar("_T")

logger = logging.getLogger(__name__)

BODY_LIMIT = 1 << 20
"""Maximum bytes of a request body; a larger one gets a 413 response."""
MODEL_HEADER = "x-local-model"
"""The response header that names the model that runs."""

_EMBEDDINGS = "/v1/embeddings"
# A body over the limit is read up to this number of bytes, so that the client can receive the 413.
_DRAIN_LIMIT = 64 << 20


class Key:
    """The key that a server accepts, in ``text``; the ``repr`` does not show the key."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class LocalApi:
    """The state and the handlers of one server.

    Args:
        model: One of `MODELS`.
        threads: CPU threads of the model.
        api_key: The only key that is accepted; None accepts any.
        quotas: The limits.
        body_limit: Maximum bytes of a request body.
        latency_ms: Milliseconds added to every response of the embeddings endpoint.
        record_texts: Whether the stats keep the received texts.
        too_long: What happens to a text of more than 8,192 tokens: ``"refuse"`` responds with 400,
            as users of the service have seen; ``"truncate"`` cuts the text, as the service
            documents.
        sizes: ``"cut"``: a smaller vector is the first part of the largest, scaled to unit length.
            ``"independent"``: it is not. The service does not document which of these it does.

    Raises:
        ValueError: The model is unknown, or a number is out of range.
        ImportError: A package that the model needs is missing.
        nexusflow_integrations.local.model_files.ModelFileError: A model file is missing or does
            not have the expected content.
    """

    def __init__(
        self,
        *,
        model: str = DEFAULT_MODEL,
        threads: int = 1,
        api_key: Key | None = None,
        quotas: Quotas | None = None,
        body_limit: int = BODY_LIMIT,
        latency_ms: float = 0.0,
        record_texts: bool = False,
        too_long: TooLong = "refuse",
        sizes: Sizes = "cut",
    ) -> None:
        if too_long not in get_args(TooLong):
            raise ValueError(f"too_long must be 'refuse' or 'truncate'; got {too_long!r}.")
        if sizes not in get_args(Sizes):
            raise ValueError(f"sizes must be 'cut' or 'independent'; got {sizes!r}.")
        number("latency_ms", latency_ms, "a number of at least zero", zero=True)
        body_limit = whole("body_limit", body_limit, 1)
        threads = whole("threads", threads, 1)
        flag("record_texts", record_texts)
        self.model = model
        self.api_key = api_key
        self.quotas = quotas or Quotas()
        self.body_limit = body_limit
        self.latency = latency_ms / 1000
        self.too_long = too_long
        self.sizes = sizes
        self.counts = Counts(record_texts=record_texts)
        encoder = make_encoder(model, threads=threads)
        encoder.check()
        self.runner = ModelRunner(encoder, self.counts.model_ran)
        self._gate = QuotaGate(self.quotas, time.monotonic())

    def app(self) -> ASGIApp:
        """Build the ASGI application."""
        app = Starlette(
            routes=[
                Route(_EMBEDDINGS, self.embeddings, methods=["POST"]),
                Route("/v1/models", self.models, methods=["GET"]),
                Route("/v1/models/{name:path}", self.model_named, methods=["GET"]),
                Route("/health", self.health, methods=["GET"]),
                Route("/", self.health, methods=["GET"]),
            ],
            exception_handlers={
                ApiError: _say_api_error,
                HTTPException: _say_http_error,
                ClientDisconnect: _say_nothing,
                Exception: _say_failure,
            },
        )
        app.router.redirect_slashes = False
        # Add these outermost, so that responses to unexpected errors get headers and are counted,
        # too.
        return _Counting(_Headers(app, self.model), self.counts)

    async def embeddings(self, request: Request) -> Response:
        self._check_key(request)
        body = await self._read_body(request)
        asked = parse_request(body)
        answer = self._answer(asked)
        return await (answer if self.runner.encoder.instant else _unless_gone(request, answer))

    async def _answer(self, asked: EmbeddingsRequest) -> Response:
        tokens = await _model_answer(self.runner.count_tokens(asked.texts))
        texts = asked.texts
        if self.too_long == "truncate":
            texts = [await self._beginning(*pair) for pair in zip(texts, tokens, strict=True)]
            tokens = [min(count, MAX_TOKENS) for count in tokens]
        check_lengths(tokens)
        total = sum(tokens)
        refusal = self._gate.admit(total, time.monotonic())
        if refusal is not None:
            raise ApiError(
                429,
                refusal.code,
                refusal.message,
                refusal.type,
                retry_after=refusal.retry_after,
            )
        self.counts.accepted(asked.texts, total)
        try:
            if self.latency:
                await asyncio.sleep(self.latency)
            spread = await _model_answer(self.runner.encode(texts))
        finally:
            self._gate.release()
        vectors = Projection.cut(spread, asked.size)
        if self.sizes == "independent":
            vectors = independent(vectors)
        return _json(write_answer(vectors, asked.encoding_format, total))

    async def _beginning(self, text: str, tokens: int) -> str:
        """Return ``text`` up to its last token that is within the limit."""
        if tokens <= MAX_TOKENS:
            return text
        fits, ends = 0, len(text)
        while ends - fits > 1:
            middle = (fits + ends) // 2
            (count,) = await _model_answer(self.runner.count_tokens([text[:middle]]))
            fits, ends = (middle, ends) if count <= MAX_TOKENS else (fits, middle)
        return text[:fits]

    async def models(self, request: Request) -> Response:
        self._check_key(request)
        return _json(orjson.dumps({"object": "list", "data": [self._card()]}))

    async def model_named(self, request: Request) -> Response:
        self._check_key(request)
        name = request.path_params["name"]
        if name != MODEL:
            raise ApiError(404, "model_not_found", f"The model `{name[:100]}` does not exist.")
        return _json(orjson.dumps(self._card()))

    async def health(self, request: Request) -> Response:
        del request
        return _json(
            orjson.dumps(
                {
                    "status": "ok" if self.runner.loaded else "loading",
                    "stands_in_for": MODEL,
                    "runs": self.model,
                    "about": MODELS[self.model],
                    "native_size": self.runner.encoder.native_size,
                    "dimensions": SIZES,
                    "default_dimensions": DEFAULT_SIZE,
                }
            )
        )

    def _card(self) -> dict[str, object]:
        owner = f"local stand-in; runs {self.model}"
        return {"id": MODEL, "object": "model", "created": 0, "owned_by": owner}

    def _check_key(self, request: Request) -> None:
        refusal = _refusal(request, self.api_key)
        if refusal is not None:
            raise ApiError(401, "invalid_api_key", refusal)

    async def _read_body(self, request: Request) -> bytes:
        encoding = request.headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            raise ApiError(
                415, "unsupported_media_type", f"Content-Encoding {encoding} is not supported."
            )
        chunks: list[bytes] = []
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size <= self.body_limit:
                chunks.append(chunk)
            elif size > _DRAIN_LIMIT:
                break
        if size > self.body_limit:
            raise ApiError(
                413,
                "request_too_large",
                f"The request body is over the limit of {self.body_limit} bytes.",
            )
        return b"".join(chunks)


def _refusal(request: Request, accepted: Key | None) -> str | None:
    """Return why the key of ``request`` is refused; an exception's frames would show the key."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key or " " in key:
        return "You didn't provide an API key. Send it as `Authorization: Bearer <key>`."
    if accepted is not None and not secrets.compare_digest(key.encode(), accepted.text.encode()):
        return "Incorrect API key provided."
    return None


def create_app(
    *,
    model: str = DEFAULT_MODEL,
    threads: int = 1,
    api_key: str | None = None,
    quotas: Quotas | None = None,
    body_limit: int = BODY_LIMIT,
    latency_ms: float = 0.0,
    record_texts: bool = False,
    too_long: TooLong = "refuse",
    sizes: Sizes = "cut",
) -> ASGIApp:
    """Build only the ASGI application, for another server or an in-process transport.

    The model starts to load in the background. Arguments and errors are those of `LocalServer`.
    """
    key = None if api_key is None else Key(api_key)
    del api_key  # keep the key out of the frames of an error
    api = LocalApi(
        model=model,
        threads=threads,
        api_key=key,
        quotas=quotas,
        body_limit=body_limit,
        latency_ms=latency_ms,
        record_texts=record_texts,
        too_long=too_long,
        sizes=sizes,
    )
    api.runner.start()
    return api.app()


async def _unless_gone(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """Return the result of ``work``; cancel ``work`` when the client closes the connection.

    Otherwise the model would keep working for a client that is gone, and stopping the server would
    wait for the model.

    Raises:
        ClientDisconnect: The client has closed the connection.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())  # the body was read: nothing else can come
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _model_answer(work: Awaitable[_T]) -> _T:
    try:
        return await work
    except Exception as error:
        logger.exception("The local model failed")
        raise _failure(error) from None


def _failure(error: Exception) -> ApiError:
    return ApiError(500, "server_error", f"{type(error).__name__}: {error}", "server_error")


def _json(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, headers, media_type="application/json")


def _say(error: ApiError) -> Response:
    return _json(error.body(), error.status, error.headers())


async def _say_api_error(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, ApiError)
    return _say(error)


async def _say_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        code, message = "not_found", f"Unknown path {request.method} {request.url.path}."
    elif error.status_code == 405:
        code, message = "method_not_allowed", f"{request.method} is not allowed here."
    else:
        code, message = "invalid_request", error.detail
    response = _say(ApiError(error.status_code, code, message))
    response.headers.update(error.headers or {})
    return response


async def _say_nothing(request: Request, error: Exception) -> Response:
    """Answer a client that has disconnected; its status, 499 as in nginx, is only counted."""
    del request, error
    return Response(status_code=499)


async def _say_failure(request: Request, error: Exception) -> Response:
    del request
    return _say(_failure(error))


class _Headers:
    """Adds the request id and the name of the model that runs to every response."""

    def __init__(self, app: ASGIApp, model: str) -> None:
        self._app = app
        self._model = model.encode("ascii")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", uuid.uuid4().hex.encode("ascii")),
                    (MODEL_HEADER.encode("ascii"), self._model),
                ]
            await send(message)

        await self._app(scope, receive, send_named)


class _Counting:
    """Counts the requests to the embeddings endpoint, including failed ones."""

    def __init__(self, app: ASGIApp, counts: Counts) -> None:
        self._app = app
        self._counts = counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != _EMBEDDINGS:
            await self._app(scope, receive, send)
            return
        status: int | None = None

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                # Count before sending, so that a client that has the response sees it counted.
                status = message["status"]
                self._counts.request_ended(status)
            await send(message)

        self._counts.request_began()
        try:
            await self._app(scope, receive, send_counted)
        finally:
            if status is None:
                self._counts.request_ended(None)
