"""Arguments of ``OpenAIEmbeddings`` are accepted, renamed, refused or ignored with one warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pydantic
import pytest

from nexusflow_integrations.errors import APIConnectionError, ConfigurationError
from nexusflow_integrations.langchain import NexusFlowEmbeddings
from nexusflow_integrations.langchain import embeddings as adapter
from nexusflow_integrations.local import LocalServer

Make = Callable[..., NexusFlowEmbeddings]


@pytest.fixture
def strict() -> Any:
    """Every warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (None, 60.0),
        (5, 5.0),
        (2.5, 2.5),
        (httpx.Timeout(7.0), 7.0),
        (httpx.Timeout(30.0, connect=5.0), 30.0),
        (httpx.Timeout(None), 60.0),
        ((3.0, 9.0), 9.0),
        ((1.0, 2.0, 3.0, 4.0), 4.0),
    ],
)
@pytest.mark.parametrize("name", ["timeout", "request_timeout"])
def test_a_timeout_may_be_written_as_httpx_has_it(
    given: Any, seconds: float, name: str, strict: None
) -> None:
    embeddings = NexusFlowEmbeddings(**{name: given})
    assert embeddings.request_timeout == seconds
    assert embeddings.client.settings.timeout == seconds


def test_headers_are_default_headers(strict: None) -> None:
    made = NexusFlowEmbeddings(headers={"X-Team": "red"})  # type: ignore[call-arg]
    assert made.client.settings.default_headers == {"X-Team": "red"}


def test_model_kwargs_are_fields_of_the_body(strict: None) -> None:
    kwargs = {"encoding_format": "float", "dimensions": 64, "user": "me"}
    made = NexusFlowEmbeddings(model_kwargs=kwargs)  # type: ignore[call-arg]
    assert made.client.settings.extra_body == {"user": "me"}
    assert (made.encoding_format, made.dimensions) == ("float", 64)
    assert kwargs == {"encoding_format": "float", "dimensions": 64, "user": "me"}
    with pytest.raises(ConfigurationError, match=r"^model_kwargs must be a dict"):
        NexusFlowEmbeddings(model_kwargs="user")  # type: ignore[call-arg]


def test_arguments_that_are_none_by_default_are_accepted_silently(strict: None) -> None:
    names = ("client", "async_client", "openai_proxy", "deployment", "organization", "headers")
    NexusFlowEmbeddings(**dict.fromkeys((*names, "model_kwargs", "default_query", "timeout")))


NO_MEANING: dict[str, Any] = {
    "skip_empty": True,
    "organization": "org-1",
    "deployment": "text-embedding-v4",
    "openai_api_version": "2026-01-01",
    "openai_api_type": "azure",
    "retry_min_seconds": 4,
    "retry_max_seconds": 20,
}


@pytest.mark.parametrize("name", NO_MEANING)
def test_arguments_without_a_meaning_here_cause_one_warning(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        NexusFlowEmbeddings(**{name: NO_MEANING[name]})
        NexusFlowEmbeddings(**{name: NO_MEANING[name]})
    (note,) = caught
    assert str(note.message) == (f"NexusFlowEmbeddings ignores {name}, which has no meaning here")
    assert note.filename == __file__


def test_one_note_names_all(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match="NexusFlowEmbeddings") as caught:
        NexusFlowEmbeddings(**NO_MEANING, tiktoken_enabled=False)  # type: ignore[call-arg]
    (note,) = caught
    assert all(name in str(note.message) for name in (*NO_MEANING, "tiktoken_enabled"))
    assert adapter._noted


def test_a_client_of_openai_is_refused() -> None:
    for name in ("client", "async_client"):
        with pytest.raises(ConfigurationError, match=f"^{name} must be None: pass http_client="):
            NexusFlowEmbeddings(**{name: object()})


def test_a_proxy_makes_the_http_clients(server: LocalServer, strict: None) -> None:
    made = NexusFlowEmbeddings(
        api_key=server.api_key,
        base_url="http://embeddings.example/v1",
        allow_http=True,
        max_retries=0,
        openai_proxy=server.base_url.removesuffix("/v1"),  # type: ignore[call-arg]
    )
    assert isinstance(made.http_client, httpx.Client)
    assert isinstance(made.http_async_client, httpx.AsyncClient)
    with pytest.raises(ConfigurationError, match=r"^openai_proxy must look like") as caught:
        NexusFlowEmbeddings(openai_proxy="socks9://user:hunter2@host")  # type: ignore[call-arg]
    assert "hunter2" not in str(caught.value)


async def test_an_error_behind_a_proxy_names_the_host_and_says_that_there_is_a_proxy() -> None:
    made = NexusFlowEmbeddings(
        api_key="sk-air-test",
        base_url="http://embeddings.example/v1",
        allow_http=True,
        max_retries=0,
        openai_proxy="http://user:hunter2@127.0.0.1:1",  # type: ignore[call-arg]
    )
    said = r"cannot connect to embeddings\.example with the http client or proxy"
    with pytest.raises(APIConnectionError, match=said) as caught:
        made.embed_query("a")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(APIConnectionError, match=said):
        await made.aembed_query("a")


async def test_dimensions_of_a_call(make: Make) -> None:
    embeddings = make(dimensions=64)
    assert len(embeddings.embed_documents(["a"], dimensions=128)[0]) == 128
    assert len(embeddings.embed_query("a", dimensions=256)) == 256
    assert len((await embeddings.aembed_documents(["a"], dimensions=512))[0]) == 512
    assert len(await embeddings.aembed_query("a", dimensions=128)) == 128
    assert len(embeddings.embed_documents(["a"])[0]) == 64
    assert embeddings.usage.texts == 5
    with pytest.raises(ConfigurationError, match=r"^dimensions must be one of"):
        embeddings.embed_documents(["a"], dimensions=100)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("model_name", "model"),
        ("api_base", "base_url"),
        ("embed_batch_size", "chunk_size"),
        ("num_workers", "max_concurrency"),
        ("dimension", "dimensions"),
        ("time_out", "timeout"),
    ],
)
def test_an_unknown_name_gets_the_one_that_means_the_same(name: str, meant: str) -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        NexusFlowEmbeddings(**{name: "sk-air-a-secret"})
    assert f"did you mean '{meant}'?" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"api_key": "a"}, {"nexusflow_api_key": "b"}),
        ({"api_key": "a"}, {"openai_api_key": "b"}),
        ({"base_url": "https://a.example/v1"}, {"openai_api_base": "https://b.example/v1"}),
        ({"timeout": 5}, {"request_timeout": 6}),
        ({"chunk_size": 5}, {"batch_size": 6}),
        ({"headers": {}}, {"default_headers": {}}),
    ],
)
def test_two_names_of_one_setting_at_once_are_refused(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    for given in ({**one, **other}, {**other, **one}):
        first, second = given
        said = f"^{first} and {second} are two names of one setting; give only one of them"
        with pytest.raises(ConfigurationError, match=said):
            NexusFlowEmbeddings(**given)
    for unset in one:
        NexusFlowEmbeddings(**{unset: None, **other})  # None is as good as not given


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("api_key", 5, "api_key must be text, not int"),
        ("nexusflow_api_key", 5, "nexusflow_api_key must be text, not int"),
        ("cache", {}, "cache must be a path, the URL of a Redis server, True, False or None, not"),
        ("cache", "true", "cache is the text 'true'"),
        ("headers", 5, "headers must be a dict of names and values or None, not 5"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_in_one_sentence(
    name: str, value: Any, said: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"^{said}"):
        NexusFlowEmbeddings(**{name: value})


def test_a_copy_may_be_changed_by_any_name() -> None:
    made = NexusFlowEmbeddings(api_key="a", timeout=5, chunk_size=5)
    copied = made.model_copy(update={"batch_size": 7, "timeout": 6, "base_url": "https://a.b/v1"})
    assert (copied.chunk_size, copied.request_timeout) == (7, 6)
    assert copied.client.base_url == "https://a.b/v1"


def test_an_object_passed_to_another_framework_names_the_right_class() -> None:
    with pytest.raises(AttributeError, match=r"Chroma takes a nexusflow_integrations\.chroma\.Nex"):
        NexusFlowEmbeddings().name  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        NexusFlowEmbeddings().nonsense  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("path", ["/embeddings", "/embeddings/", "/"])
def test_the_address_of_the_endpoint_itself_is_understood(
    make: Make, server: LocalServer, path: str
) -> None:
    embeddings = make(base_url=f"{server.base_url}{path}")
    assert embeddings.client.base_url == server.base_url
    assert len(embeddings.embed_query("a")) == 64


def test_a_404_without_a_version_says_so(make: Make, server: LocalServer) -> None:
    address = server.base_url.removesuffix("/v1")
    with pytest.raises(Exception, match=f"try {address}/v1$"):
        make(base_url=address).embed_query("a")


@pytest.mark.parametrize(
    "texts",
    [lambda: np.array(["a", "b"]), lambda: iter(["a", "b"]), lambda: {"a": 0, "b": 0}.keys()],
    ids=["numpy", "iterator", "keys"],
)
async def test_any_iterable_of_texts_is_taken(make: Make, texts: Any) -> None:
    embeddings = make()
    right = embeddings.embed_documents(["a", "b"])
    assert np.allclose(embeddings.embed_documents(texts()), right)
    assert np.allclose(await embeddings.aembed_documents(texts()), right)
