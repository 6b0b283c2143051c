"""Converts arguments of ``OpenAIEmbeddings`` to settings of this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nexusflow_integrations._core import checks
from nexusflow_integrations._core.fields import OURS
from nexusflow_integrations.errors import ConfigurationError

NAMES = {
    "openai_api_key": "api_key",
    "openai_api_base": "base_url",
    "headers": "default_headers",
    "async_http_client": "http_async_client",
}
"""Our names for arguments of ``OpenAIEmbeddings`` that have the same meaning."""
_TOKENIZING = (
    "check_embedding_ctx_length",
    "embedding_ctx_length",
    "tiktoken_enabled",
    "tiktoken_model_name",
    "allowed_special",
    "disallowed_special",
)
_NO_MEANING = (
    "skip_empty",
    "organization",
    "openai_organization",
    "deployment",
    "openai_api_version",
    "api_version",
    "openai_api_type",
    "retry_min_seconds",
    "retry_max_seconds",
)


def take_over(settings: dict[str, Any]) -> str:
    """Rename ``settings`` to our names; return warnings about arguments that have no effect here.

    Raises:
        ConfigurationError: An argument is not supported here.
    """
    tokenizing, nothing = (
        [name for name in names if settings.pop(name, None) is not None]
        for names in (_TOKENIZING, _NO_MEANING)
    )
    for name in ("client", "async_client"):
        if settings.pop(name, None) is not None:
            raise ConfigurationError(
                f"{name} must be None: pass http_client=httpx.Client(...) or http_async_client"
            )
    _take_fields(settings)
    _take_proxy(settings)
    parts = []
    if tokenizing:
        parts.append(
            f"does not need {', '.join(tokenizing)}: texts are sent as they are, never as tokens,"
            " and a text that is too long for the model is an error, unless on_too_long is"
            " 'split' (as in OpenAIEmbeddings), 'truncate' or 'send'"
        )
    if nothing:
        have = "has" if len(nothing) == 1 else "have"
        parts.append(f"ignores {', '.join(nothing)}, which {have} no meaning here")
    return " and ".join(parts)


def _take_fields(settings: dict[str, Any]) -> None:
    """Convert ``model_kwargs`` to fields of the request's body."""
    given = settings.pop("model_kwargs", None)
    if given is None:
        return
    if not isinstance(given, Mapping):
        raise checks.refuse("model_kwargs", "a dict or None", given)
    fields = dict(given)
    for name in OURS:
        if name in fields and name != "input":
            settings.setdefault(name, fields.pop(name))
    if fields:
        settings["extra_body"] = {**fields, **(settings.get("extra_body") or {})}


def _take_proxy(settings: dict[str, Any]) -> None:
    proxy = settings.pop("openai_proxy", None)
    if not proxy:
        return
    import httpx

    try:
        for name, kind in (("http_client", httpx.Client), ("http_async_client", httpx.AsyncClient)):
            if settings.get(name) is None:
                settings[name] = kind(proxy=proxy)
    except Exception:  # noqa: BLE001 - the error's message may contain a password
        raise ConfigurationError("openai_proxy must look like http://proxy.example:3128") from None
