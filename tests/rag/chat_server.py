"""The embeddings API together with a chat model that streams what the test says it should."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from nexusflow_integrations.local import create_app


class ChatServer:
    """Serves ``/v1/chat/completions`` beside the local embeddings, for ``with``.

    Attributes:
        asked: The bodies of the chat requests, in order.
        pieces: What the model answers, piece by piece.
        reply: Makes the answer of a request that is not streamed from its body instead.
        usage: Tokens that an answer reports, as ``prompt_tokens`` and ``completion_tokens``; a
            streamed one only if the request asks for it.
        knows_stream_options: Whether a request with ``stream_options`` is accepted.
        status: Status of the answers; anything but 200 is an error that echoes the key.
    """

    def __init__(self, pieces: Sequence[str] = ("Use ", "`random.choice`", " [1].")) -> None:
        self.pieces = list(pieces)
        self.reset()
        app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Mount("/", create_app(model="hash")),
            ]
        )
        self._server = uvicorn.Server(
            uvicorn.Config(app, port=0, log_config=None, lifespan="off", ws="none")
        )
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def reset(self) -> None:
        """Answer as usual again, and forget the requests."""
        self.status = 200
        self.reply: Callable[[dict[str, Any]], str] | None = None
        self.usage: dict[str, int] | None = {"prompt_tokens": 300, "completion_tokens": 40}
        self.knows_stream_options = True
        self.asked: list[dict[str, object]] = []
        self.keys: list[str] = []

    @property
    def base_url(self) -> str:
        port = self._server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}/v1"

    async def _chat(self, request: Request) -> Response:
        self.asked.append(await request.json())
        key = request.headers["authorization"].removeprefix("Bearer ")
        self.keys.append(key)
        if self.status != 200:
            error = {"message": f"Incorrect API key provided: {key}", "code": "invalid_api_key"}
            return JSONResponse({"error": error}, self.status)
        options = self.asked[-1].get("stream_options")
        if options is not None and not self.knows_stream_options:
            refusal = {"message": "unknown parameter: stream_options", "code": "unknown"}
            return JSONResponse({"error": refusal}, 400)
        if not self.asked[-1].get("stream"):
            made = "".join(self.pieces) if self.reply is None else self.reply(self.asked[-1])
            message = {"role": "assistant", "content": made}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            whole: dict[str, Any] = {"id": "chat-1", "object": "chat.completion", "created": 1}
            whole |= {"model": "qwen3.5-plus", "choices": [choice]}
            if self.usage is not None:
                whole["usage"] = self.usage | {"total_tokens": sum(self.usage.values())}
            return JSONResponse(whole)
        return StreamingResponse(
            self._stream(counted=options is not None), media_type="text/event-stream"
        )

    async def _stream(self, *, counted: bool) -> AsyncIterator[str]:
        for number, piece in enumerate([*self.pieces, None]):
            chunk = {
                "id": "chat-1",
                "object": "chat.completion.chunk",
                "created": 1,
                "model": "qwen3.5-plus",
                "choices": [
                    {
                        "index": 0,
                        "delta": {"content": piece} | ({"role": "assistant"} if not number else {})
                        if piece is not None
                        else {},
                        "finish_reason": None if piece is not None else "stop",
                    }
                ],
            }
            yield f"data: {json.dumps(chunk)}\n\n"
        if counted and self.usage is not None:
            usage = self.usage | {"total_tokens": sum(self.usage.values())}
            last = {"id": "chat-1", "object": "chat.completion.chunk", "created": 1}
            last |= {"model": "qwen3.5-plus", "choices": [], "usage": usage}
            yield f"data: {json.dumps(last)}\n\n"
        yield "data: [DONE]\n\n"

    def __enter__(self) -> ChatServer:
        started = threading.Event()
        startup = self._server.startup

        async def say(sockets: object = None) -> None:
            await startup(sockets)  # type: ignore[arg-type]
            started.set()

        self._server.startup = say  # type: ignore[method-assign]
        self._thread.start()
        assert started.wait(120)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.should_exit = True
        self._thread.join(60)
