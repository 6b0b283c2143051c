"""Opens a collection only if its vectors are comparable with new queries and documents."""

from __future__ import annotations

import asyncio
import os
import time
import warnings
from typing import TYPE_CHECKING, Any

# Import this first: if Chroma is missing, its error says what to install.
from nexusflow_integrations._core.clock import monotonic
from nexusflow_integrations.chroma import COMPARED, NexusFlowEmbeddingFunction  # isort: split

from chromadb.errors import NotFoundError

from nexusflow_integrations._core import checks
from nexusflow_integrations._core.one_writer import only_writer
from nexusflow_integrations._core.settings import DIMENSIONS
from nexusflow_integrations._core.tuned import TunedSettings
from nexusflow_integrations.chroma_collections.calls import check_client
from nexusflow_integrations.chroma_collections.exchanging import complete, is_interrupted
from nexusflow_integrations.chroma_collections.plans import (
    acarry_out,
    adirectly,
    carry_out,
    directly,
    look_up,
)
from nexusflow_integrations.chroma_collections.verifying import READ, check_same, sampled
from nexusflow_integrations.errors import CollectionError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chromadb.api import AsyncClientAPI, ClientAPI
    from chromadb.api.collection_configuration import CreateCollectionConfiguration
    from chromadb.api.models.AsyncCollection import AsyncCollection
    from chromadb.api.models.Collection import Collection
    from chromadb.api.types import CollectionMetadata

    from nexusflow_integrations._core.vectors import Vectors

EXCHANGING = 10.0
"""Seconds to wait for another process that is exchanging names; an exchange takes milliseconds."""
_SAMPLED: Any = ["documents", "embeddings"]


def open_collection(
    client: ClientAPI,
    name: str,
    embedding_function: NexusFlowEmbeddingFunction | None = None,
    *,
    create: bool = True,
    metadata: CollectionMetadata | None = None,
    configuration: CreateCollectionConfiguration | None = None,
    address_changed: bool = False,
    verify: bool = False,
    adopt: bool = False,
    settings: TunedSettings | str | os.PathLike[str] | None = None,
) -> Collection:
    """Open or create a collection, and make sure that its vectors stay comparable.

    Chroma itself compares only the names of embedding functions, so it would mix vectors of
    different models of the same size. This function compares model, size, instructions,
    ``extra_body``, ``default_query`` and service (the endpoint's origin; all ports of this machine
    count as the same). Nothing is sent, except for ``verify`` or ``adopt``, and an error changes
    nothing.

    Args:
        client: Any of Chroma's synchronous clients.
        name: Name of the collection.
        embedding_function: The embedding function. Default: the stored function, or if there
            is none, a function with default settings.
        create: Whether to create the collection if it does not exist.
        metadata: Metadata for a new collection. If the collection exists with other metadata, a
            warning says so.
        configuration: Configuration for a new collection. A ``space`` that differs from the space
            of an existing collection is an error.
        address_changed: Whether the same service now has a new address, or the collection is still
            empty. The new address is then stored.
        verify: Whether to embed up to three documents of the collection again, bypassing the cache,
            and compare them: nothing else shows that a service has changed its model. This is one
            request, billed like any other.
        adopt: Whether to take over a collection that another embedding function filled. Its
            documents must get the same vectors, which is checked as with ``verify``. The collection
            then stores this function and cannot be opened with the former one.
        settings: The settings that `nexusflow tune` chose, or the path of the file that it
            wrote; use this instead of ``embedding_function``.

    Raises:
        NexusFlowError: With ``verify`` or ``adopt``: the documents cannot be embedded.
        ConfigurationError: The collection has another model, size, instruction, service,
            ``extra_body``, ``default_query`` or space, or its embedding function is not
            NexusFlow's. With ``verify`` or ``adopt``: the service returns vectors that differ from
            the stored ones. With ``adopt``: there are no stored vectors to compare with.
        CollectionError: There is no connection to the server, or an interrupted exchange of names
            cannot be completed.
        chromadb.errors.NotFoundError: The collection does not exist, and ``create`` is false.
        OSError: The file of ``settings`` cannot be read.
    """
    check_client(client, asynchronous=False)
    checks.flags(create=create, address_changed=address_changed, verify=verify, adopt=adopt)
    embedding_function = _tuned(embedding_function, settings)
    name = checks.text("name", name, "the name of a collection")
    check_arguments(embedding_function, configuration, metadata)
    stored = _opened(client, name, create=create)
    if stored is None:
        function = embedding_function or NexusFlowEmbeddingFunction()
        made = directly(
            "creating the collection",
            client.get_or_create_collection,
            name=name,
            embedding_function=function,
            metadata=metadata,
            configuration=None if configuration is None else configuration.copy(),
        )
        fitting(made, function)  # another process may have created the collection
        return made
    foreign = adopt and not _is_ours(stored)
    if foreign:
        function = embedding_function or _sized_for(stored)
    else:
        function = fitting(stored, embedding_function, address_changed=address_changed)
    _check_ignored(stored, metadata, configuration)
    if verify or foreign:
        found = directly("reading", stored.get, limit=READ, include=_SAMPLED)
        ids, texts, rows = sampled(found)
        if foreign:
            _check_comparable(name, found["ids"], ids, rows, function)
        if texts:
            check_same(name, ids, rows, function._uncached()(texts))
    if taking := function if foreign else _moved(stored, function):
        directly("changing the collection", stored._client._modify, **_storing(stored, taking))
        return directly("reading", client.get_collection, name=name, embedding_function=function)
    using: Collection = _using(stored, function)
    return using


def _tuned(
    function: NexusFlowEmbeddingFunction | None,
    settings: TunedSettings | str | os.PathLike[str] | None,
) -> NexusFlowEmbeddingFunction | None:
    if settings is None:
        return function
    if function is not None:
        raise ConfigurationError(
            "settings=... sets the embedding function, too: leave out embedding_function, or pass"
            " NexusFlowEmbeddingFunction(**settings.for_client(), ...) alone"
        )
    if not isinstance(settings, (TunedSettings, str, os.PathLike)):
        raise checks.refuse("settings", "TunedSettings or the path of a file", settings)
    if not isinstance(settings, TunedSettings):
        settings = TunedSettings.load(settings)
    named = settings.for_client()
    if "model" in named:
        named["model_name"] = named.pop("model")
    return NexusFlowEmbeddingFunction(**named)


async def aopen_collection(
    client: AsyncClientAPI,
    name: str,
    embedding_function: NexusFlowEmbeddingFunction | None = None,
    *,
    create: bool = True,
    metadata: CollectionMetadata | None = None,
    configuration: CreateCollectionConfiguration | None = None,
    address_changed: bool = False,
    verify: bool = False,
    adopt: bool = False,
    settings: TunedSettings | str | os.PathLike[str] | None = None,
) -> AsyncCollection:
    """Open or create a collection like ``open_collection``, with an ``AsyncHttpClient``."""
    check_client(client, asynchronous=True)
    checks.flags(create=create, address_changed=address_changed, verify=verify, adopt=adopt)
    embedding_function = _tuned(embedding_function, settings)
    name = checks.text("name", name, "the name of a collection")
    check_arguments(embedding_function, configuration, metadata)
    stored = await _aopened(client, name, create=create)
    if stored is None:
        function = embedding_function or NexusFlowEmbeddingFunction()
        made = await adirectly(
            "creating the collection",
            client.get_or_create_collection,
            name=name,
            embedding_function=function,
            metadata=metadata,
            configuration=None if configuration is None else configuration.copy(),
        )
        fitting(made, function)
        return made
    foreign = adopt and not _is_ours(stored)
    if foreign:
        function = embedding_function or _sized_for(stored)
    else:
        function = fitting(stored, embedding_function, address_changed=address_changed)
    _check_ignored(stored, metadata, configuration)
    if verify or foreign:
        found = await adirectly("reading", stored.get, limit=READ, include=_SAMPLED)
        ids, texts, rows = sampled(found)
        if foreign:
            _check_comparable(name, found["ids"], ids, rows, function)
        if texts:
            fresh = await asyncio.to_thread(function._uncached(), texts)
            check_same(name, ids, rows, fresh)
    if taking := function if foreign else _moved(stored, function):
        await adirectly(
            "changing the collection", stored._client._modify, **_storing(stored, taking)
        )
        return await adirectly(
            "reading", client.get_collection, name=name, embedding_function=function
        )
    using: AsyncCollection = _using(stored, function)
    return using


def _opened(client: ClientAPI, name: str, *, create: bool) -> Any:
    stored = carry_out(look_up(client, name), directly)
    until = monotonic() + EXCHANGING
    while stored is None:
        interrupted = carry_out(is_interrupted(client, name), directly)
        if interrupted:
            try:
                with only_writer(client, 0.0):  # a process that is exchanging names holds this lock
                    carry_out(complete(client, name), directly)
            except CollectionError:
                if monotonic() >= until:
                    raise
                time.sleep(0.02)
        stored = carry_out(look_up(client, name), directly)
        if not interrupted:
            break
    if stored is None and not create:
        raise NotFoundError(f"there is no collection {name!r}")
    return stored


async def _aopened(client: AsyncClientAPI, name: str, *, create: bool) -> Any:
    stored = await acarry_out(look_up(client, name), adirectly)
    if stored is None:
        await acarry_out(complete(client, name), adirectly)
        stored = await acarry_out(look_up(client, name), adirectly)
    if stored is None and not create:
        raise NotFoundError(f"there is no collection {name!r}")
    return stored


def _using(collection: Any, function: NexusFlowEmbeddingFunction) -> Any:
    """Return the same collection (by id, not by name) with another function."""
    return type(collection)(
        client=collection._client, model=collection._model, embedding_function=function
    )


def same_space(
    collection: Collection | AsyncCollection, function: NexusFlowEmbeddingFunction
) -> bool:
    """Return whether ``function`` has the settings with which the collection was filled."""
    if not _is_ours(collection) or type(function) is not NexusFlowEmbeddingFunction:
        return False
    stored = _stored_in(collection)
    moved = stored.service not in (None, function.service)
    return not moved and not _differing(collection, stored, function)


def fitting(
    collection: Collection | AsyncCollection,
    given: NexusFlowEmbeddingFunction | None,
    *,
    address_changed: bool = False,
) -> NexusFlowEmbeddingFunction:
    """Return ``given`` if its vectors are comparable, or the stored function if none is given."""
    stored = _stored_in(collection)
    if given is None:
        if address_changed and "service" in stored.get_config():
            config = stored.get_config()
            del config["service"]  # read the service from the environment again
            return NexusFlowEmbeddingFunction(**config)
        stored._check_service()
        return stored
    for setting, old, new in _differing(collection, stored, given):
        raise ConfigurationError(
            f"collection {collection.name!r} was made with {setting}={old!r}, and this"
            f" embedding function has {setting}={new!r}: their vectors are not comparable; leave"
            " embedding_function out to use the stored one, or make another collection"
        )
    if stored.query_instruction != given.query_instruction:
        raise ConfigurationError(
            f"collection {collection.name!r} was made with"
            f" query_instruction={stored.query_instruction!r}, and this embedding function has"
            f" query_instruction={given.query_instruction!r}, so the same question would find"
            " different documents; leave embedding_function out to use the stored one, or change"
            ' it for all programs with collection.modify(configuration={"embedding_function": ...})'
        )
    if stored.service not in (None, given.service) and not address_changed:
        raise ConfigurationError(
            f"the vectors of collection {collection.name!r} come from {stored.service}, and this"
            f" embedding function uses {given.service}: their vectors are not comparable; make"
            " another collection, or, if it is the same service at a new address or the collection"
            " is still empty, call open_collection(..., address_changed=True) once"
        )
    return given


def _differing(
    collection: Collection | AsyncCollection,
    stored: NexusFlowEmbeddingFunction,
    given: NexusFlowEmbeddingFunction,
) -> list[tuple[str, object, object]]:
    """Return the settings that would change document vectors: name, stored value, given value."""
    size = stored.dimensions
    if size is None and given.dimensions is not None:
        size = collection.get_model().dimension  # the server's default size
    old, new = stored.get_config(), given.get_config()
    settings = [
        ("model_name", stored.model_name, given.model_name),
        ("dimensions", size, given.dimensions),
        *((name, old.get(name), new.get(name)) for name in COMPARED),
    ]
    return [setting for setting in settings if setting[1] != setting[2]]


def _stored_in(collection: Collection | AsyncCollection) -> NexusFlowEmbeddingFunction:
    persisted = collection.configuration_json.get("embedding_function") or {}
    if not _is_ours(collection):
        name = persisted.get("name")
        kind = f"the embedding function {name!r}" if name else "no embedding function"
        raise ConfigurationError(
            f"collection {collection.name!r} stores {kind}, so it is not"
            " known whether its vectors are comparable with those of your function; make another"
            " collection, or, if this one was filled with your function's model, call"
            " open_collection(..., adopt=True) once"
        )
    return NexusFlowEmbeddingFunction.build_from_config(persisted["config"])


def _is_ours(collection: Collection | AsyncCollection) -> bool:
    persisted = collection.configuration_json.get("embedding_function") or {}
    return bool(persisted.get("name") == NexusFlowEmbeddingFunction.name())


def _sized_for(collection: Collection | AsyncCollection) -> NexusFlowEmbeddingFunction:
    """Return a function with default settings and the size of the stored vectors."""
    size = collection.get_model().dimension
    return NexusFlowEmbeddingFunction(dimensions=size if size in DIMENSIONS else None)


def _check_comparable(
    name: str,
    all_ids: list[str],
    ids: list[str],
    rows: list[Vectors],
    function: NexusFlowEmbeddingFunction,
) -> None:
    """Refuse a collection whose vectors are not comparable before anything is paid for."""
    if all_ids and not ids:
        raise ConfigurationError(
            f"collection {name!r} stores vectors without documents, so it cannot be checked"
            " whether they are comparable; make another collection"
        )
    size = rows[0].size if rows else None
    if None not in (size, function.dimensions) and size != function.dimensions:
        raise ConfigurationError(
            f"collection {name!r} has vectors of size {size}, and this embedding function has"
            f" dimensions={function.dimensions}"
        )


def _storing(
    collection: Collection | AsyncCollection, function: NexusFlowEmbeddingFunction
) -> dict[str, Any]:
    # ``collection.modify`` raises an error after it has stored a function with another name.
    return {
        "id": collection.id,
        "new_configuration": {"embedding_function": function},
        "tenant": collection.tenant,
        "database": collection.database,
    }


def _moved(
    collection: Collection | AsyncCollection, function: NexusFlowEmbeddingFunction
) -> NexusFlowEmbeddingFunction | None:
    """Return the configuration to store if ``function`` has another address; else ``None``."""
    stored = _stored_in(collection)
    if stored.service in (None, function.service):
        return None
    # Keep whether a size was given: Chroma refuses to change that.
    config = {**function.get_config(), "dimensions": stored.dimensions}
    return NexusFlowEmbeddingFunction.build_from_config(config)


def check_arguments(
    function: object,
    configuration: CreateCollectionConfiguration | None,
    metadata: CollectionMetadata | None = None,
) -> None:
    """Refuse arguments that would create a collection that cannot be opened again."""
    if function is not None and not isinstance(function, NexusFlowEmbeddingFunction):
        raise ConfigurationError(
            "embedding_function must be a NexusFlowEmbeddingFunction, not"
            f" {type(function).__name__}"
        )
    if function is not None and function.name() != NexusFlowEmbeddingFunction.name():
        raise ConfigurationError(
            f"the name() of {type(function).__name__} must be"
            f" {NexusFlowEmbeddingFunction.name()!r}, not {function.name()!r}: the collection"
            " stores the name to find the function again"
        )
    for name, given in (("configuration", configuration), ("metadata", metadata)):
        if given is not None and not isinstance(given, dict):
            raise checks.refuse(name, "a dict or None", given)
    if configuration and configuration.get("embedding_function") is not None:
        raise ConfigurationError(
            "pass the embedding function as embedding_function, not in configuration"
        )


def _check_ignored(
    collection: Collection | AsyncCollection,
    metadata: Mapping[str, Any] | None,
    configuration: CreateCollectionConfiguration | None,
) -> None:
    """Warn about options that an existing collection ignores."""
    kept = collection.metadata or {}
    other = [
        f"metadata[{key!r}]" for key, value in (metadata or {}).items() if kept.get(key) != value
    ]
    has = collection.configuration_json
    for part, settings in (configuration or {}).items():
        values: Any = settings if isinstance(settings, dict) else {}
        for key, value in values.items():
            old = (has.get(part) or {}).get(key)
            if old == value:
                continue
            if key == "space":
                raise ConfigurationError(
                    f"collection {collection.name!r} was made with space={old!r}, which cannot"
                    f" change to {value!r}; make another collection"
                )
            other.append(f"configuration[{part!r}][{key!r}]")
    if other:
        warnings.warn(
            f"collection {collection.name!r} exists and keeps its own {', '.join(other)}; change"
            " them with collection.modify(...)",
            UserWarning,
            stacklevel=3,
        )
