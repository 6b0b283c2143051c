"""Open a collection only if its vectors can be compared with what will be asked and added."""

from __future__ import annotations

from typing import TYPE_CHECKING

# First: where Chroma is missing, this says what to install.
from nexusflow_integrations.chroma import NexusFlowEmbeddingFunction  # isort: split

from chromadb.errors import NotFoundError

from nexusflow_integrations.errors import (
    ConfigurationError,
)

if TYPE_CHECKING:
    from chromadb.api import AsyncClientAPI, ClientAPI
    from chromadb.api.collection_configuration import CreateCollectionConfiguration
    from chromadb.api.models.AsyncCollection import AsyncCollection
    from chromadb.api.models.Collection import Collection
    from chromadb.api.types import CollectionMetadata


def open_collection(
    client: ClientAPI,
    name: str,
    embedding_function: NexusFlowEmbeddingFunction | None = None,
    *,
    create: bool = True,
    metadata: CollectionMetadata | None = None,
    configuration: CreateCollectionConfiguration | None = None,
) -> Collection:
    """Open a collection, or make it, and see to it that its vectors stay comparable.

    Chroma itself compares only the names of embedding functions, so that another model of the same
    size mixes with what is there.

    Args:
        client: Any of Chroma's synchronous clients.
        name: Name of the collection.
        embedding_function: Default: the one that is stored, else one with default settings.
        create: Whether to make a collection that does not exist.
        metadata: For a collection that is made here.
        configuration: The same.

    Raises:
        ConfigurationError: The collection is of another model or size, or its embedding function
            is not NexusFlow's.
        chromadb.errors.NotFoundError: There is none, and ``create`` is false.
    """
    try:
        stored = client.get_collection(name, embedding_function=None)
    except NotFoundError:
        if not create:
            raise
        function = embedding_function or NexusFlowEmbeddingFunction()
        made = client.get_or_create_collection(
            name,
            embedding_function=function,  # type: ignore[arg-type]  # of documents, not images
            metadata=metadata,
            configuration=None if configuration is None else configuration.copy(),
        )
        fitting(made, function)  # another process may have been faster
        return made
    function = fitting(stored, embedding_function)
    return client.get_collection(name, embedding_function=function)  # type: ignore[arg-type]


async def aopen_collection(
    client: AsyncClientAPI,
    name: str,
    embedding_function: NexusFlowEmbeddingFunction | None = None,
    *,
    create: bool = True,
    metadata: CollectionMetadata | None = None,
    configuration: CreateCollectionConfiguration | None = None,
) -> AsyncCollection:
    """Open or make a collection like ``open_collection``, with an ``AsyncHttpClient``."""
    try:
        stored = await client.get_collection(name, embedding_function=None)
    except NotFoundError:
        if not create:
            raise
        function = embedding_function or NexusFlowEmbeddingFunction()
        made = await client.get_or_create_collection(
            name,
            embedding_function=function,  # type: ignore[arg-type]
            metadata=metadata,
            configuration=None if configuration is None else configuration.copy(),
        )
        fitting(made, function)
        return made
    function = fitting(stored, embedding_function)
    return await client.get_collection(name, embedding_function=function)  # type: ignore[arg-type]


def fitting(
    collection: Collection | AsyncCollection, given: NexusFlowEmbeddingFunction | None
) -> NexusFlowEmbeddingFunction:
    """Return ``given`` if its vectors belong into the collection; if there is none, the stored."""
    persisted = collection.configuration_json.get("embedding_function") or {}
    if persisted.get("name") != NexusFlowEmbeddingFunction.name():
        raise ConfigurationError(
            f"collection {collection.name!r} stores"
            f" {persisted.get('name', 'no')!r} as its embedding function, not 'nexusflow', so"
            " nobody can say whether the vectors are comparable; make another collection"
        )
    stored = NexusFlowEmbeddingFunction.build_from_config(persisted["config"])
    if given is None:
        return stored
    size = stored.dimensions
    if size is None and given.dimensions is not None:
        size = collection.get_model().dimension  # what the server's own size turned out to be
    for setting, old, new in (
        ("model_name", stored.model_name, given.model_name),
        ("dimensions", size, given.dimensions),
    ):
        if old != new:
            raise ConfigurationError(
                f"collection {collection.name!r} was made with {setting}={old!r}, and this"
                f" embedding function has {new!r}: their vectors are not comparable; give none to"
                " take the one that is stored, or make another collection"
            )
    return given
