"""Makes errors name the node or text that they are about, because LlamaIndex hides indices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from llama_index.core.schema import BaseNode, NodeWithScore

from nexusflow_integrations._core.counts import first_three
from nexusflow_integrations.errors import (
    BadRequestError,
    InvalidInputError,
    NexusFlowError,
    RefusedTextsError,
    _rebuild,
)

_BEGINNING = 60
"""Maximum characters of a text that a message quotes."""
_FILE_KEYS = ("file_path", "file_name", "source", "url")
"""Metadata keys in which LlamaIndex's readers store the origin of a document."""


def check_nodes(nodes: Iterable[Any]) -> list[BaseNode]:
    """Return ``nodes`` as a list.

    Raises:
        InvalidInputError: ``nodes`` is not iterable, or an item is not a node.
    """
    if isinstance(nodes, (BaseNode, str)) or not isinstance(nodes, Iterable):
        raise InvalidInputError(f"expected a list of nodes, not {type(nodes).__name__}")
    items = list(nodes)
    for place, node in enumerate(items):
        if not isinstance(node, BaseNode):
            hint = ": pass its node" if isinstance(node, NodeWithScore) else ""
            raise InvalidInputError(
                f"item {place} is not a LlamaIndex node but a {type(node).__name__}{hint}",
                index=place,
            )
    return items


def file_of(node: BaseNode) -> str | None:
    """Return the file or address that ``node`` comes from, if its metadata says so."""
    found = next((node.metadata[key] for key in _FILE_KEYS if node.metadata.get(key)), None)
    return None if found is None else str(found)


def document_of(node: BaseNode) -> str | None:
    """Return the id of the document that ``node`` is a part of."""
    return None if node.source_node is None else node.source_node.node_id


def node_name(node: BaseNode) -> str:
    """Return the name of ``node`` for a message."""
    document, file = document_of(node), file_of(node)
    whole = "" if document in (None, node.node_id) else f" of document {document!r}"
    return f"node {node.node_id!r}{whole}" + ("" if file is None else f" ({file})")


def beginning(text: object) -> str:
    """Return the beginning of ``text`` in quotes, on one line; empty if it is not a string."""
    if not isinstance(text, str) or not text.strip():
        return ""
    line = " ".join(text[: 4 * _BEGINNING].split())
    more = "..." if len(line) > _BEGINNING or len(text) > 4 * _BEGINNING else ""
    return f'"{line[:_BEGINNING]}{more}"'.encode(errors="backslashreplace").decode()


@contextmanager
def naming_texts(texts: Sequence[str]) -> Iterator[None]:
    """Add the beginning of the text to errors about a text."""
    try:
        yield
    except NexusFlowError as error:
        named = _named(error, len(texts), "texts", lambda place: beginning(texts[place]))
        if named is error:
            raise
        raise named from error.__cause__


@contextmanager
def naming_nodes(nodes: Sequence[BaseNode]) -> Iterator[None]:
    """Add the names of node and document to errors about a node."""
    try:
        yield
    except NexusFlowError as error:
        named = _named(error, len(nodes), "nodes", lambda place: node_name(nodes[place]))
        if named is error:
            raise
        raise named from error.__cause__


def refused_error(
    refused: Mapping[int, Any], count: int, kind: str, about: Callable[[int], str]
) -> RefusedTextsError:
    """Return the error for ``count`` texts or nodes of which some were refused."""
    of_text = "text {}: " if kind == "texts" else ""
    reasons = (
        f"{of_text.format(place)}{about(place)}: {refused[place]}" for place in sorted(refused)
    )
    return RefusedTextsError(
        f"the server refused {len(refused)} of {count} {kind}"
        f" ({first_three(reasons, len(refused))});"
        " the others are in this error's `finished`",
        refused=refused,
    )


def _named(
    error: NexusFlowError, count: int, kind: str, about: Callable[[int], str]
) -> NexusFlowError:
    if isinstance(error, RefusedTextsError):
        words = str(refused_error(error.refused, count, kind, about))
    elif isinstance(error, InvalidInputError) and error.index is not None and about(error.index):
        words = f"{error}: {about(error.index)}"
    elif isinstance(error, BadRequestError) and count == 1:
        words = f"{about(0)}: {error}"
    else:
        return error
    # Return a copy: other calls may share this error and name the text differently.
    other = _rebuild(type(error), (words, *error.args[1:]), dict(error.__dict__))
    return other.with_traceback(error.__traceback__)
