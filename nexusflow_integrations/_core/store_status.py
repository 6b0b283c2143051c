"""Finds the HTTP status in an error of a vector store's client."""

from __future__ import annotations

from contextlib import suppress

from nexusflow_integrations._core.checks import attribute

REFUSED = (400, 413, 422)
"""Statuses for a request whose content, such as a document, or whose size is not accepted."""


def status_of(error: BaseException) -> int | None:
    """Return the status with which a store's server answered, if ``error`` has one.

    The clients raise errors of different classes, but use only a few names for the status: Chroma
    has ``code()``, Qdrant ``status_code``, httpx and requests ``response.status_code``.
    """
    # Chroma's client raises a bare Exception for an answer that is not its server's, such as a
    # proxy's.
    answered = error.__context__ if type(error) is Exception else error
    for holder in (answered, attribute(answered, "response")):
        for name in ("status_code", "status", "code"):
            status = attribute(holder, name)
            if name == "code" and callable(status):
                with suppress(TypeError):  # another method of that name
                    status = status()
            if attribute(status, "name") == "INVALID_ARGUMENT":  # gRPC's 400
                return 400
            if isinstance(status, int) and not isinstance(status, bool):
                return int(status)
    return None
