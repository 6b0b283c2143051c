"""The API's protocol: parses a request body, and writes a response or an error.

All functions are pure functions of bytes. Statuses, codes and messages come from the documentation
of the service and of the model behind it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import orjson
import pybase64
from numpy.typing import NDArray

from .sizes import DEFAULT_SIZE, SIZES

MODEL = "text-embedding-v4"
"""The only model name that requests may use; the server does not run that model."""
MAX_TEXTS = 10
MAX_TOKENS = 8192
TooLong = Literal["refuse", "truncate"]

_INVALID = "<400> InternalError.Algo.InvalidParameter: "


class ApiError(Exception):
    """An error response of the API.

    Args:
        status: HTTP status.
        code, message, type: The three fields of the documented body.
        retry_after: Seconds, for the headers ``Retry-After`` and ``retry-after-ms``.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        type: str = "invalid_request_error",  # noqa: A002 - the API uses this word
        *,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.type = type
        self.retry_after = retry_after

    def body(self) -> bytes:
        """Return the documented error body, as JSON."""
        error = {"code": self.code, "message": self.message, "type": self.type}
        return orjson.dumps({"error": error})

    def headers(self) -> dict[str, str]:
        """Return the headers that say when to retry, if that is known."""
        if self.retry_after is None:
            return {}
        return {
            "retry-after": str(max(1, math.ceil(self.retry_after))),
            "retry-after-ms": str(max(1, math.ceil(self.retry_after * 1000))),
        }


def invalid(message: str, *, code: str = "invalid_parameter_error") -> ApiError:
    """Return a 400 in the service's format."""
    return ApiError(400, code, message)


@dataclass(frozen=True)
class EmbeddingsRequest:
    """A valid request; token lengths and quotas are not checked yet."""

    texts: list[str]
    size: int
    encoding_format: Literal["float", "base64"]


def parse_request(body: bytes) -> EmbeddingsRequest:
    """Read the JSON body of ``POST /v1/embeddings``.

    Raises:
        ApiError: 400 if a field is malformed or out of range, 404 for another model.
    """
    try:
        fields: Any = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise invalid(f"The request body is not valid JSON: {error}.") from None
    if not isinstance(fields, dict):
        raise invalid("The request body must be a JSON object.")
    _check_model(fields.get("model"))
    return EmbeddingsRequest(
        texts=_texts(fields.get("input")),
        size=_size(fields.get("dimensions")),
        encoding_format=_encoding_format(fields.get("encoding_format")),
    )


def _check_model(model: Any) -> None:
    if model is None:
        raise invalid("You must provide the parameter model.", code="missing_required_parameter")
    if not isinstance(model, str):
        raise invalid("model must be a string.")
    if model != MODEL:
        raise ApiError(
            404,
            "model_not_found",
            f"The model `{model[:100]}` does not exist or you do not have access to it.",
        )


def _texts(value: Any) -> list[str]:
    if value is None:
        raise invalid("You must provide the parameter input.", code="missing_required_parameter")
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise invalid(
            f"{_INVALID}Value error, contents is neither str nor list of str.: input.contents"
        )
    if not texts:
        raise invalid(f"{_INVALID}Value error, contents is empty.: input.contents")
    if len(texts) > MAX_TEXTS:
        raise invalid(
            f"{_INVALID}Value error, batch size is invalid, it should not be larger than "
            f"{MAX_TEXTS}.: input.contents"
        )
    if not all(text.strip() for text in texts):
        raise invalid(f"{_INVALID}Value error, an empty text is not allowed.: input.contents")
    return texts


def _size(value: Any) -> int:
    if value is None:
        return DEFAULT_SIZE
    if not isinstance(value, int) or isinstance(value, bool) or value not in SIZES:
        allowed = ", ".join(map(str, SIZES))
        raise invalid(f"{_INVALID}dimensions is invalid, it should be in [{allowed}].")
    return value


def _encoding_format(value: Any) -> Literal["float", "base64"]:
    if value is None or value == "float":
        return "float"
    if value == "base64":
        return "base64"
    raise invalid("encoding_format must be `float` or `base64`.")


def check_lengths(tokens: list[int]) -> None:
    """Refuse texts that are too long.

    Raises:
        ApiError: 400 if a text has more than 8192 tokens.
    """
    if max(tokens) > MAX_TOKENS:
        raise invalid(
            f"{_INVALID}Range of input length should be [1, {MAX_TOKENS}]",
            code="context_length_exceeded",
        )


def write_answer(
    vectors: NDArray[np.float32], encoding_format: Literal["float", "base64"], tokens: int
) -> bytes:
    """Return the documented response body, as JSON.

    Args:
        vectors: Shape (n, size), float32 little-endian, C order.
        encoding_format: Numbers, or base64 of each row's bytes.
        tokens: The tokens billed for the request.
    """
    rows: list[Any]
    if encoding_format == "base64":
        rows = [pybase64.b64encode_as_string(row.data) for row in vectors]
    else:
        # Use float64, so that the decimal digits give exactly the same float32 as base64.
        rows = list(vectors.astype(np.float64))
    return orjson.dumps(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": row}
                for index, row in enumerate(rows)
            ],
            "model": MODEL,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )
