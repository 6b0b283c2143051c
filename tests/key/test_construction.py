"""The errors of impossible settings show neither keys nor headers nor passwords."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import sys
from dataclasses import is_dataclass
from typing import Any

import pytest

import nexusflow_integrations
from nexusflow_integrations import errors
from nexusflow_integrations._core.redis.address import RedisAddress

from .entries import ENTRIES, HEADER, HEADERS, KEY, PASSWORD, Entry
from .traces import leaks

IMPOSSIBLE: dict[str, dict[str, Any]] = {
    "a size": {"dimensions": 3},
    "a key with a line break": {"api_key": f"{KEY}\nX-Other: 1"},
    "a key with blanks": {"api_key": f"Bearer {KEY}"},
    "a timeout": {"timeout": -1},
    "a timeout of another type": {"timeout": "soon"},
    "retries": {"max_retries": -1},
    "a forbidden header": {"default_headers": {**HEADERS, "Authorization": f"Bearer {KEY}"}},
    "a header with a line break": {"default_headers": {**HEADERS, "X-A": "one\r\ntwo"}},
    "a header of bytes": {"default_headers": {**HEADERS, "X-A": b"bytes"}},
    "headers that are none": {"default_headers": [HEADER]},
    "an address with a password": {"base_url": f"https://user:{PASSWORD}@example.com/v1"},
    "an address with a key": {"base_url": f"https://example.com/v1?key={KEY}"},
    "a key as the address": {"base_url": KEY},
    "a Redis address": {"cache": f"redis://user:{PASSWORD}@host:port/0"},
    "a Redis option": {"cache": f"redis://user:{PASSWORD}@host:1/0?nonsense=1"},
    "a name that is none": {"nonsense": KEY},
}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_an_impossible_setting_shows_no_secret(entry: Entry, what: str) -> None:
    settings = {"api_key": KEY, "default_headers": HEADERS, **IMPOSSIBLE[what]}
    with pytest.raises((ValueError, TypeError)) as caught:
        entry.made(**settings)
    assert leaks(caught.value, KEY, HEADER, PASSWORD) == []


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
@pytest.mark.parametrize("error", [RuntimeError, ModuleNotFoundError, OSError, KeyError])
def test_no_error_of_a_constructor_shows_a_secret_whatever_its_type(
    entry: Entry, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error("a bug, or a broken installation")

    monkeypatch.setattr("nexusflow_integrations.client.check_price", fail)
    with pytest.raises(error) as caught:
        entry.made(api_key=KEY, default_headers=HEADERS)
    assert leaks(caught.value, KEY, HEADER) == []


@pytest.mark.parametrize("name", ["api_key", "api_base", "api_key_env_var", "unknown"])
def test_a_stored_configuration_with_a_secret_shows_it_in_no_error(name: str) -> None:
    chroma = pytest.importorskip("nexusflow_integrations.chroma")
    value = f"https://user:{PASSWORD}@example.com/v1" if name == "api_base" else KEY
    config = json.loads(json.dumps({"model_name": "m", name: value}))
    function = chroma.NexusFlowEmbeddingFunction
    for use in (
        function.build_from_config,
        function.validate_config,
        lambda config: function("k").validate_config_update({}, config),
        lambda config: function(KEY, api_key_env_var=value),
    ):
        if name != "api_key_env_var" and use.__name__ == "<lambda>":
            continue
        with pytest.raises(errors.ConfigurationError) as caught:
            use(config)
        assert leaks(caught.value, KEY, PASSWORD) == []


def test_without_a_key_the_message_names_the_local_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEXUSFLOW_API_KEY", raising=False)
    from nexusflow_integrations import NexusFlow
    from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction

    for embed in (NexusFlow().embed, NexusFlowEmbeddingFunction()):
        with pytest.raises(errors.ConfigurationError, match="run `nexusflow serve`"):
            embed(["a"])
    # The server's variables do not help where another variable is read.
    other = NexusFlowEmbeddingFunction(api_key_env_var="NEXUSFLOW_KEY_OF_OURS")
    with pytest.raises(errors.ConfigurationError, match=r"NEXUSFLOW_KEY_OF_OURS$"):
        other(["a"])


def test_no_key_given_shows_no_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEXUSFLOW_API_KEY", raising=False)
    from nexusflow_integrations import NexusFlow

    with pytest.raises(errors.ConfigurationError, match="no API key") as caught:
        NexusFlow(default_headers=HEADERS).embed("a")
    assert leaks(caught.value, HEADER) == []


def test_an_invalid_key_in_the_environment_is_in_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NEXUSFLOW_API_KEY", f"{KEY} and more")
    from nexusflow_integrations import NexusFlow

    with pytest.raises(
        errors.ConfigurationError, match="was anything copied with the key"
    ) as caught:
        NexusFlow().embed("a")
    assert leaks(caught.value, KEY) == []


def test_plain_text_that_ray_might_print_is_refused_without_showing_it() -> None:
    pytest.importorskip("ray.data")
    from nexusflow_integrations import ray

    for make in (ray.EmbedBatch, lambda key: ray.DriverKey(f"{key}\n")):
        with pytest.raises(errors.ConfigurationError) as caught:
            make(KEY)
        assert leaks(caught.value, KEY) == []


@pytest.mark.parametrize(
    "url", ["redis://:{}@host:port/0", "redis://:{}@host/0?x=1", "http://:{}@h"]
)
def test_limits_on_a_redis_server_show_no_password(url: str) -> None:
    from nexusflow_integrations.redis import RedisLimits

    with pytest.raises(errors.ConfigurationError) as caught:
        RedisLimits(url.format(PASSWORD))
    assert leaks(caught.value, PASSWORD) == []


def test_a_changed_field_of_llama_index_shows_no_secret() -> None:
    llama_index = pytest.importorskip("nexusflow_integrations.llama_index")
    embedding = llama_index.NexusFlowEmbedding(api_key=KEY)
    for name, value in (
        ("api_key", f"{KEY}\n"),
        ("default_headers", {"Authorization": HEADER}),
        ("cache", f"redis://:{PASSWORD}@host:port"),
    ):
        with pytest.raises(errors.ConfigurationError) as caught:
            setattr(embedding, name, value)
        assert leaks(caught.value, KEY, HEADER, PASSWORD) == []
    embedding.api_key, embedding.default_headers = KEY, HEADERS
    with pytest.raises(errors.ConfigurationError, match="dimensions") as caught:
        embedding.dimensions = 3
    assert leaks(caught.value, KEY, HEADER) == []


@pytest.mark.parametrize("name", ["nexusflow_api_key", "api_key"])
def test_a_copy_of_langchains_embeddings_with_another_key_shows_no_key(name: str) -> None:
    langchain = pytest.importorskip("nexusflow_integrations.langchain")
    embeddings = langchain.NexusFlowEmbeddings(api_key=KEY)
    for update in ({name: f"{KEY}\n"}, {name: KEY, "dimensions": 3}):
        with pytest.raises(ValueError) as caught:
            embeddings.model_copy(update=update)
        assert leaks(caught.value, KEY) == []


def test_a_lancedb_function_shows_no_key() -> None:
    lancedb = pytest.importorskip("nexusflow_integrations.lancedb", exc_type=ImportError)
    for settings in ({"dimensions": 3}, {"nonsense": 1}, {"dimensions": "three"}):
        with pytest.raises(ValueError) as caught:
            lancedb.NexusFlowEmbeddings(api_key=KEY, **settings)
        assert leaks(caught.value, KEY) == []
    with pytest.raises(errors.ConfigurationError, match="would be stored") as caught:
        lancedb.NexusFlowEmbeddings.create(api_key=f"$var:NAME:{KEY}")
    assert leaks(caught.value, KEY) == []


def test_a_model_of_llm_shows_no_key() -> None:
    llm = pytest.importorskip("nexusflow_integrations.llm", exc_type=ImportError)
    with pytest.raises(errors.ConfigurationError) as caught:
        list(llm.NexusFlowEmbeddingModel(64).embed_batch(["a"], key=f"{KEY}\n"))
    assert leaks(caught.value, KEY) == []


def test_a_local_server_shows_no_key() -> None:
    local = pytest.importorskip("nexusflow_integrations.local")
    for settings in ({"latency_ms": -1}, {"model": "none"}, {"requests_per_minute": -1}):
        with pytest.raises(ValueError) as caught:
            local.LocalServer(api_key=KEY, **settings)
        assert leaks(caught.value, KEY) == []
        settings.pop("requests_per_minute", None)
        with pytest.raises(ValueError) as caught:
            local.create_app(api_key=KEY, **(settings or {"body_limit": 0}))
        assert leaks(caught.value, KEY) == []


# ---- what is not finished can be printed


def _printable() -> list[type]:
    """All classes of the package whose ``repr`` is written here."""
    found: set[type] = set()
    for module in pkgutil.walk_packages(nexusflow_integrations.__path__, "nexusflow_integrations."):
        if module.name.endswith("__main__"):
            continue
        try:
            names = vars(importlib.import_module(module.name))
        except ImportError:
            continue
        classes = [value for value in names.values() if inspect.isclass(value)]
        found |= {cls for cls in classes if getattr(cls.__repr__, "__module__", "") in sys.modules}
    ours = [cls for cls in found if cls.__repr__.__module__.startswith("nexusflow_integrations")]
    # A dataclass has all its fields before our code runs, and a tuple is never incomplete.
    return [cls for cls in ours if not is_dataclass(cls) and not issubclass(cls, tuple)]


def test_an_object_that_was_not_finished_can_be_printed() -> None:
    printable = _printable()
    assert {"NexusFlow", "ApiKey", "RedisAddress"} <= {cls.__name__ for cls in printable}
    for cls in printable:
        assert repr(cls.__new__(cls))


def test_a_redis_address_shows_no_password() -> None:
    address = RedisAddress(f"redis://user:{PASSWORD}@host:1/0?ssl_password={PASSWORD}")
    assert PASSWORD not in f"{address} {address!r}"
