"""Settings are checked once, and never show the key."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from nexusflow_integrations._core.secret import ApiKey
from nexusflow_integrations._core.settings import (
    DEFAULT_BASE_URL,
    DIMENSIONS,
    Settings,
    check_dimensions,
    resolve_api_key,
    resolve_base_url,
)
from nexusflow_integrations.errors import ConfigurationError

KEY = "sk-air-very-secret-0123456789"


class Secret:
    def get_secret_value(self) -> str:
        return KEY


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEXUSFLOW_API_KEY", raising=False)
    monkeypatch.delenv("NEXUSFLOW_BASE_URL", raising=False)


# ---- the key


@pytest.mark.parametrize(
    "spoiled",
    [
        KEY + "\n",
        KEY + "\r\n",
        "\t" + KEY,
        KEY[:10] + "\n" + KEY[10:],
        KEY + " and more",
        KEY + "\x00",
        KEY + "é",
        KEY + "\u200b",
        "Bearer " + KEY,
    ],
)
def test_a_key_that_cannot_stand_in_a_header_is_refused_without_printing_any_of_it(
    spoiled: str,
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve_api_key(spoiled)
    assert "very-secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_blanks_around_a_key_are_cut_off() -> None:
    assert resolve_api_key(f"  {KEY} ").reveal() == KEY


@pytest.mark.parametrize("empty", ["", "   "])
def test_an_empty_key_is_refused(empty: str) -> None:
    with pytest.raises(ConfigurationError, match="empty"):
        resolve_api_key(empty)


def test_the_error_for_a_key_of_another_type_names_the_type_and_not_the_value() -> None:
    with pytest.raises(ConfigurationError, match="not bytes") as caught:
        resolve_api_key(KEY.encode())
    assert "secret" not in str(caught.value)


def test_no_key_anywhere_names_both_ways_to_give_one() -> None:
    with pytest.raises(ConfigurationError, match=r"api_key=.*NEXUSFLOW_API_KEY"):
        resolve_api_key()


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", KEY)
    assert resolve_api_key().reveal() == KEY


def test_the_key_comes_from_an_object_that_hides_it() -> None:
    assert resolve_api_key(Secret()).reveal() == KEY


def test_a_key_is_not_shown_by_printing_or_pickling() -> None:
    key = ApiKey(KEY)
    for shown in (repr(key), str(key), f"{key}", f"{[key]}"):
        assert "secret" not in shown
    with pytest.raises(TypeError):
        pickle.dumps(key)
    assert copy.deepcopy(key) is key  # recorders of HTTP copy headers
    assert not hasattr(key, "__dict__")


# ---- the base URL


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        (None, DEFAULT_BASE_URL),
        ("https://example.org/v1", "https://example.org/v1"),
        ("https://example.org/v1/", "https://example.org/v1"),
        ("  https://example.org/v1//  ", "https://example.org/v1"),
        ("https://example.org", "https://example.org"),
        ("https://example.org/v1/embeddings", "https://example.org/v1"),
        ("https://example.org/v1/embeddings/", "https://example.org/v1"),
        ("http://127.0.0.1:8080/v1", "http://127.0.0.1:8080/v1"),
        ("http://127.9.8.7/v1", "http://127.9.8.7/v1"),
        ("http://[::1]:80/v1", "http://[::1]:80/v1"),
        ("http://localhost:1/v1", "http://localhost:1/v1"),
        ("HTTP://LocalHost:1/V1", "http://localhost:1/V1"),
        ("https://my_service:8443/a/b.c", "https://my_service:8443/a/b.c"),
    ],
)
def test_a_base_url_loses_blanks_and_trailing_slashes_only(
    given: str | None, resolved: str
) -> None:
    assert resolve_base_url(given) == resolved


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("http://example.org/v1", "plain http"),
        ("http://10.0.0.1/v1", "plain http"),
        ("http://localhost.evil.org/v1", "plain http"),
        ("http://127.0.0.1.evil.org/v1", "plain http"),
        ("https://user:pass@example.org/v1", "user name"),
        ("https://user@example.org/v1", "user name"),
        ("https://example.org/v1?key=1", "query"),
        ("https://example.org/v1#part", "fragment"),
        ("https://exa mple.org/v1", "blanks"),
        ("ftp://example.org/v1", "must look like"),
        ("example.org/v1", "must look like"),
        ("https:///v1", "must look like"),
        ("https://[::1/v1", "must name its host like"),
        ("https://example.org:port/v1", "must name its host like"),
        ("https://example.org:99999/v1", "must name its host like"),
        ("https://例え.jp/v1", "must name its host like"),
        ("https://example.org/\x1b[31m", "must look like"),
        (7, "must be text"),
    ],
)
def test_a_base_url_that_could_leak_or_is_invalid_is_refused(bad: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        resolve_base_url(bad)
    assert "pass@" not in str(caught.value)


def test_plain_http_elsewhere_needs_the_opt_in() -> None:
    assert resolve_base_url("http://10.0.0.1/v1", allow_http=True) == "http://10.0.0.1/v1"


def test_the_base_url_comes_from_the_environment_under_the_same_rules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", "https://env.example/v1/")
    assert resolve_base_url() == "https://env.example/v1"
    assert resolve_base_url("https://given.example") == "https://given.example"
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", "http://env.example/v1")
    with pytest.raises(
        ConfigurationError, match=r"plain http.*; it is the value of NEXUSFLOW_BASE_URL$"
    ):
        resolve_base_url()


def test_an_error_names_the_variable_with_the_wrong_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUSFLOW_BASE_URL", "nowhere")
    with pytest.raises(
        ConfigurationError, match=r"must look like.*; it is the value of NEXUSFLOW_BASE_URL$"
    ):
        resolve_base_url()
    monkeypatch.setenv("NEXUSFLOW_OTHER_KEY", "sk-air-a b")
    with pytest.raises(
        ConfigurationError, match=r"^api_key contains.*the value of NEXUSFLOW_OTHER_KEY"
    ) as caught:
        resolve_api_key(env="NEXUSFLOW_OTHER_KEY")
    assert "sk-air" not in str(caught.value)


def test_a_password_is_never_shown() -> None:
    for url in ("http:/user:hunter2@host", "https://x/\\user:hunter2@host", "user:hunter2@host"):
        with pytest.raises(ConfigurationError, match="user name or password") as caught:
            resolve_base_url(url)
        assert "hunter2" not in str(caught.value)


# ---- numbers and words


def settings(**values: Any) -> Settings:
    return Settings(base_url=DEFAULT_BASE_URL, **values)


@pytest.mark.parametrize("size", [*DIMENSIONS, None])
def test_every_size_of_the_model_is_allowed(size: int | None) -> None:
    assert check_dimensions(size) == size


@pytest.mark.parametrize("size", [0, -64, 63, 100, 4096, True, "1024", 1024.0])
def test_other_sizes_are_refused_with_the_list_of_those_allowed(size: Any) -> None:
    with pytest.raises(ConfigurationError, match="2048, 1536, 1024"):
        settings(dimensions=size)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("batch_size", True),
        ("batch_size", 2.0),
        ("max_concurrency", 0),
        ("max_concurrency", 5000),
        ("max_retries", -1),
        ("timeout", 0),
        ("timeout", None),
        ("timeout", float("inf")),
        ("timeout", float("nan")),
        ("timeout", "60"),
        ("deadline", 0),
        ("deadline", -1.0),
        ("requests_per_minute", 0),
        ("tokens_per_minute", float("nan")),
        ("tokens_per_minute", True),
        ("model", ""),
        ("model", "  "),
        ("model", None),
        ("encoding_format", "hex"),
        ("on_refused", "skip"),
        ("query_instruction", 3),
    ],
)
def test_an_invalid_setting_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=name):
        settings(**{name: value})


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer x"},
        {"authorization": "x"},
        {"Content-Length": "3"},
        {"Content-Encoding": "gzip"},
        {"HOST": "x"},
        {"X-A": "one\r\nX-B: two"},
        {"X\nA": "1"},
        {"X-Ä": "1"},
        {"X-A": 3},
    ],
)
def test_headers_that_would_break_or_forge_a_request_are_refused(headers: Any) -> None:
    with pytest.raises(ConfigurationError, match="default_headers") as caught:
        settings(default_headers=headers)
    assert "two" not in str(caught.value)


def test_default_headers_stay_out_of_the_repr_for_they_may_be_secret() -> None:
    assert "hush" not in repr(settings(default_headers={"X-Token": "hush"}))


def test_settings_are_equal_by_value_and_cannot_be_changed() -> None:
    assert settings(dimensions=64) == settings(dimensions=64)
    with pytest.raises(AttributeError):
        settings().model = "other"  # type: ignore[misc]
