"""``embed_nodes`` embeds nodes and leaves out those that cannot be embedded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from llama_index.core import Settings
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr, SerializeAsAny
from llama_index.core.schema import BaseNode, MetadataMode, TransformComponent

from nexusflow_integrations._core import checks
from nexusflow_integrations._core.left_out import LeftOut, reason_in_words, reason_of
from nexusflow_integrations._core.log import logger
from nexusflow_integrations._core.request.long_texts import check_document
from nexusflow_integrations._core.settings import (
    ON_REFUSED,
    ON_TOO_LONG,
    OnRefused,
    OnTooLongOrCollect,
)
from nexusflow_integrations._core.usage import Usage
from nexusflow_integrations.errors import (
    BadRequestError,
    ConfigurationError,
    InvalidInputError,
    NexusFlowError,
    RefusedTextsError,
)
from nexusflow_integrations.llama_index.embedding import NexusFlowEmbedding, writes_workflow_state
from nexusflow_integrations.llama_index.naming import (
    check_nodes,
    document_of,
    file_of,
    node_name,
    refused_error,
)
from nexusflow_integrations.llama_index.stored import Vector

__all__ = ["EmbedNodes", "EmbeddedNodes", "aembed_nodes", "embed_nodes"]


@dataclass(frozen=True)
class EmbeddedNodes:
    """The outcome of ``embed_nodes``.

    Attributes:
        nodes: The nodes that were embedded, in order, each with its ``embedding``.
        left_out: The nodes that could not be embedded, each with its id, document, file and reason.
        usage: The tokens, requests and cost of the call.
    """

    nodes: list[BaseNode] = field(default_factory=list)
    left_out: tuple[LeftOut, ...] = ()
    usage: Usage = Usage()  # noqa: RUF009 - the default is frozen


def embed_nodes(
    nodes: Iterable[BaseNode],
    embed_model: BaseEmbedding | None = None,
    *,
    on_refused: OnRefused = "collect",
    on_blank: OnRefused = "collect",
    on_too_long: OnTooLongOrCollect | None = None,
    show_progress: bool = False,
) -> EmbeddedNodes:
    """Embed nodes; leave out and report those that are blank or that the server refuses.

    ``VectorStoreIndex(done.nodes)`` uses the result and embeds nothing again.

    Args:
        nodes: Any iterable of nodes or documents. Their ``embedding`` is set in place. As
            everywhere in LlamaIndex, the metadata of a node is embedded before its text.
        embed_model: A ``NexusFlowEmbedding``. Default: ``Settings.embed_model``.
        on_refused: What to do if the server refuses a node: ``"collect"`` adds the node to
            ``left_out``; ``"raise"`` raises a ``RefusedTextsError`` once all others are embedded.
        on_blank: What to do with a node without text: ``"collect"`` adds the node to ``left_out``;
            ``"raise"`` raises an ``InvalidInputError`` before anything is sent.
        on_too_long: What to do with a node that has too many tokens: ``"collect"`` adds the node to
            ``left_out``; ``"error"`` raises an ``InvalidInputError``; ``"split"``, ``"truncate"``
            and ``"send"`` work as in ``NexusFlowEmbedding``. Default: the setting of the model, but
            ``"collect"`` instead of ``"error"``.
        show_progress: Show a tqdm bar.

    Raises:
        ConfigurationError: The embedding model is not a ``NexusFlowEmbedding``.
        InvalidInputError: An item is not a node, or is blank or too long; ``index`` is its
            position. Nothing was sent.
        NexusFlowError: The call failed for another reason; ``finished`` holds the finished
            vectors by the index of their node.
    """
    checks.flags(show_progress=show_progress)
    run = _Run(nodes, embed_model, on_refused, on_blank, on_too_long)
    for part in run.parts("get_text_embedding_batch", "_get_text_embeddings"):
        with part:
            if run.by_hooks:
                part.vectors = run.model.get_text_embedding_batch(part.texts, show_progress)
            else:
                part.vectors = run.model._embed(part.texts, "document", show_progress, run.count)
    return run.result()


async def aembed_nodes(
    nodes: Iterable[BaseNode],
    embed_model: BaseEmbedding | None = None,
    *,
    on_refused: OnRefused = "collect",
    on_blank: OnRefused = "collect",
    on_too_long: OnTooLongOrCollect | None = None,
    show_progress: bool = False,
) -> EmbeddedNodes:
    """Embed like ``embed_nodes``, without blocking the event loop."""
    checks.flags(show_progress=show_progress)
    run = _Run(nodes, embed_model, on_refused, on_blank, on_too_long)
    for part in run.parts("aget_text_embedding_batch", "_aget_text_embeddings"):
        with part:
            if run.by_hooks:
                part.vectors = await run.model.aget_text_embedding_batch(part.texts, show_progress)
            else:
                part.vectors = await run.model._aembed(
                    part.texts, "document", show_progress, run.count
                )
    return run.result()


class EmbedNodes(TransformComponent):
    """``embed_nodes`` as the last step of an ``IngestionPipeline``.

        step = EmbedNodes(embed_model=NexusFlowEmbedding())
        pipeline = IngestionPipeline(transformations=[SentenceSplitter(), step])
        nodes = pipeline.run(documents=documents)
        print(step.left_out)

    Nodes that are left out are removed from the pipeline and logged as a warning. ``left_out`` is
    only set in the process that embeds: with ``run(num_workers=...)``, there are only the warnings.
    If the pipeline's cache has the result, nothing is embedded, and ``left_out`` does not change.
    """

    embed_model: SerializeAsAny[NexusFlowEmbedding]
    """The embedding model."""

    on_refused: OnRefused = Field(default="collect", exclude=True)
    """As for ``embed_nodes``."""

    on_blank: OnRefused = Field(default="collect", exclude=True)
    """As for ``embed_nodes``."""

    on_too_long: OnTooLongOrCollect | None = Field(default=None, exclude=True)
    """As for ``embed_nodes``."""

    _done: EmbeddedNodes = PrivateAttr(default_factory=EmbeddedNodes)

    @classmethod
    def class_name(cls) -> str:
        return "NexusFlowEmbedNodes"

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Return what changes a vector; for the state of a workflow, return all settings."""
        plain = super().to_dict(**kwargs)
        if self.on_too_long in ("split", "truncate", "send"):
            plain["on_too_long"] = self.on_too_long  # the others leave the text out
        if writes_workflow_state():
            names = ("on_refused", "on_blank", "on_too_long")
            plain |= {name: getattr(self, name) for name in names}
            plain["embed_model"] = self.embed_model.to_dict()
        return plain

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """The nodes that the last call left out, each with its id, document, file and reason."""
        return self._done.left_out

    @property
    def usage(self) -> Usage:
        """The tokens, requests and cost of the last call."""
        return self._done.usage

    def __call__(
        self, nodes: Sequence[BaseNode], show_progress: bool = False, **kwargs: Any
    ) -> Sequence[BaseNode]:
        """Return the nodes that could be embedded."""
        done = embed_nodes(
            nodes,
            self.embed_model,
            on_refused=self.on_refused,
            on_blank=self.on_blank,
            on_too_long=self.on_too_long,
            show_progress=bool(show_progress),
        )
        return self._noted(done)

    async def acall(
        self, nodes: Sequence[BaseNode], show_progress: bool = False, **kwargs: Any
    ) -> Sequence[BaseNode]:
        """Return the nodes that could be embedded, without blocking the event loop."""
        done = await aembed_nodes(
            nodes,
            self.embed_model,
            on_refused=self.on_refused,
            on_blank=self.on_blank,
            on_too_long=self.on_too_long,
            show_progress=bool(show_progress),
        )
        return self._noted(done)

    def _noted(self, done: EmbeddedNodes) -> list[BaseNode]:
        self._done = EmbeddedNodes([], done.left_out, done.usage)
        if done.left_out:
            shown = "; ".join(str(left) for left in done.left_out[:3])
            more = "; ..." if len(done.left_out) > 3 else ""
            count, left = len(done.nodes) + len(done.left_out), len(done.left_out)
            logger.warning("%d of %d nodes left out: %s%s", left, count, shown, more)
        return done.nodes


# -- internal --------------------------------------------------------------------------------------


class _Part:
    """Nodes that one call embeds; a context manager that takes their results."""

    def __init__(self, run: _Run, places: list[int], texts: list[str]) -> None:
        self._run = run
        self._places = places
        self.texts = texts
        self.vectors: Sequence[Vector] = ()

    def __enter__(self) -> None:
        self.again = False

    def __exit__(self, kind: Any, error: BaseException | None, at: Any) -> bool:
        if error is None:
            self._run.vectors.update(zip(self._places, self.vectors, strict=True))
            return False
        if not isinstance(error, NexusFlowError):
            return False
        finished = {self._places[n]: row.tolist() for n, row in error.finished.items()}
        self._run.vectors.update(finished)
        if isinstance(error, RefusedTextsError):
            self._run.refused.update({self._places[n]: why for n, why in error.refused.items()})
            return True
        if isinstance(error, BadRequestError) and len(self.texts) == 1:
            self._run.refused[self._places[0]] = error
            return True
        if isinstance(error, InvalidInputError) and error.index is not None:
            # A subclass made the text too long; the other texts were not sent.
            self._run.leave_out(self._places.pop(error.index), error)
            del self.texts[error.index]
            self.again = bool(self.texts)
            return True
        error.finished = self._run.finished()
        return False


class _Run:
    """One call: which nodes are embedded, and the outcome for each."""

    def __init__(
        self,
        nodes: Iterable[BaseNode],
        embed_model: BaseEmbedding | None,
        on_refused: OnRefused,
        on_blank: OnRefused,
        on_too_long: OnTooLongOrCollect | None,
    ) -> None:
        self.model = _model(embed_model, on_too_long)
        self.by_hooks = False
        self.vectors: dict[int, Vector] = {}
        self.refused: dict[int, NexusFlowError] = {}
        self._raises_refused = checks.one_of("on_refused", on_refused, ON_REFUSED) == "raise"
        raises = set()
        if checks.one_of("on_blank", on_blank, ON_REFUSED) == "raise":
            raises.add("blank")
        if on_too_long == "error":
            raises.add("too long")
        self._left_out: dict[int, LeftOut] = {}
        self._parts: list[Usage] = []
        self._before = self.model.usage
        self._nodes = check_nodes(nodes)
        self._texts: dict[int, str] = {}
        settings = self.model.client.settings
        for place, node in enumerate(self._nodes):
            text = node.get_content(metadata_mode=MetadataMode.EMBED)
            try:
                self._texts[place] = check_document(text, settings)
            except InvalidInputError as error:
                if reason_of(error) in raises:
                    words = reason_in_words(error).replace("the text", f"node {place}", 1)
                    said = f"{words}: {node_name(node)}"
                    raise InvalidInputError(said, index=place) from None
                self.leave_out(place, error)

    def count(self, usage: Usage) -> None:
        self._parts.append(usage)

    def parts(self, *hooks: str) -> Iterable[_Part]:
        """Return what to embed together: all nodes, or batches if a subclass overrides a hook."""
        self.by_hooks = self.model._overrides(*hooks)
        places = list(self._texts)
        size = self.model.embed_batch_size if self.by_hooks else max(1, len(places))
        for start in range(0, len(places), size):
            some = places[start : start + size]
            part = _Part(self, some, [self._texts[place] for place in some])
            yield part
            while part.again:
                yield part

    def finished(self) -> dict[int, Any]:
        """Return the finished vectors, by position: float32 of shape (d,)."""
        return {place: np.asarray(row, np.float32) for place, row in self.vectors.items()}

    def result(self) -> EmbeddedNodes:
        """Return the outcome.

        Raises:
            RefusedTextsError: Some nodes were refused, and refusals are not collected.
        """
        if self.refused and self._raises_refused:
            error = refused_error(
                self.refused, len(self._nodes), "nodes", lambda place: node_name(self._nodes[place])
            )
            error.finished = self.finished()
            raise error
        for place, why in self.refused.items():
            self.leave_out(place, why)
        embedded = []
        for place, node in enumerate(self._nodes):
            if place in self.vectors:
                node.embedding = self.vectors[place]
                embedded.append(node)
        left_out = tuple(self._left_out[place] for place in sorted(self._left_out))
        return EmbeddedNodes(embedded, left_out, self._usage())

    def _usage(self) -> Usage:
        after = self.model.usage
        return after - self._before if self.by_hooks else sum(self._parts, Usage(price=after.price))

    def leave_out(self, place: int, error: NexusFlowError) -> None:
        """Record that a node has no vector, and the reason."""
        node, reason, words = self._nodes[place], reason_of(error), reason_in_words(error)
        why = error if reason == "refused" else None
        self._left_out[place] = LeftOut(
            node.node_id, place, reason, words, why, file_of(node), document_of(node)
        )


def _model(
    embed_model: BaseEmbedding | None, on_too_long: OnTooLongOrCollect | None
) -> NexusFlowEmbedding:
    if embed_model is None:
        try:
            embed_model = Settings.embed_model
        except Exception as error:
            raise ConfigurationError(
                "no embedding model: pass embed_model=, or set Settings.embed_model"
            ) from error
    if not isinstance(embed_model, NexusFlowEmbedding):
        raise ConfigurationError(
            f"the embedding model must be a NexusFlowEmbedding, not {type(embed_model).__name__}"
        )
    if on_too_long is not None:
        checks.one_of("on_too_long", on_too_long, (*ON_TOO_LONG, "collect"))
        policy = "error" if on_too_long == "collect" else on_too_long
        if policy != embed_model.on_too_long:
            embed_model = copy(embed_model)
            embed_model.on_too_long = policy
    return embed_model
