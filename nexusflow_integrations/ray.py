"""NexusFlow on Ray Data: ``EmbedBatch`` for ``Dataset.map_batches``, ``ClusterLimits`` for all.

Importing this module neither starts Ray nor needs one that runs. A worker builds its client when
its first batch comes; the limits and the budget of the account are kept in one named actor.
"""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np

from nexusflow_integrations._core import checks, forks
from nexusflow_integrations._core.needed import needed
from nexusflow_integrations._core.pace.shared import SlotLimits
from nexusflow_integrations._core.secret import ApiKey, Headers, secret_arguments
from nexusflow_integrations._core.settings import check_dimensions, resolve_api_key
from nexusflow_integrations._core.shared_budget import Grant, Grants
from nexusflow_integrations._core.usage import Budget, Price, check_price
from nexusflow_integrations.client import ClientOptions, ClientSettings, NexusFlow
from nexusflow_integrations.errors import ConfigurationError, NexusFlowError

with needed("nexusflow_integrations.ray", "ray", "pyarrow", install="nexusflow-integrations[ray]"):
    import pyarrow as pa
    import ray
    from ray.exceptions import RayActorError
    from ray.experimental import internal_kv

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from nexusflow_integrations._core.vectors import Vectors

__all__ = ["ClusterLimits", "ClusterState", "DriverKey", "EmbedBatch"]

DIMENSIONS = 1024
"""The model's own size: all blocks of a dataset must agree on one before the first answer."""
RESTART_PAUSE = 1.0
"""Seconds for which an actor that takes over grants no send time: what the one before it granted
may still go out, and a server counts over a second."""
ACTIVE = 10.0
"""Seconds without a lease after which a worker no longer counts among those who share."""
ASK_TIMEOUT = 20.0
"""Seconds to wait for the actor, which may be starting again, before a worker paces alone."""
DRAW_TIMEOUT = 60.0
"""Seconds to wait for a part of the budget, without which nothing is sent."""
SAVE_AHEAD = 200
"""One part in so many of the budget is saved as granted ahead of use; a restart may lose it."""


class DriverKey:
    """The driver's API key, carried to the workers that have none in their environment.

    It shows itself as asterisks wherever Ray prints an argument. It is not encrypted: Ray keeps the
    constructor's arguments, pickled, in its object store, and whoever may run code on the cluster
    can read them. A key in the environment of each worker is safer.

    Args:
        value: The key, or an object with ``get_secret_value``. Default: ``NEXUSFLOW_API_KEY`` of
            the driver.

    Raises:
        ConfigurationError: There is no key, or it cannot be one.
    """

    __slots__ = ("_key",)

    @secret_arguments
    def __init__(self, value: object = None) -> None:
        self._key: ApiKey = resolve_api_key(value)

    def get_secret_value(self) -> str:
        """Return the key."""
        return self._key.reveal()

    def __repr__(self) -> str:
        return "DriverKey('**********')"

    def __reduce__(self) -> tuple[Any, ...]:
        return DriverKey, (self._key.reveal(),)


class EmbedBatch:
    """Embeds one column of a dataset: ``ds.map_batches(EmbedBatch, concurrency=4, ...)``.

    Adds a column of vectors and a column of errors; all other columns pass through as they came. A
    text that cannot be sent, or that the server refuses, gets no vector and a sentence in the
    column of errors (else null), and does not hold up the others. What "no vector" is depends on
    ``batch_format``:

    * ``"pyarrow"``: the column is ``FixedSizeList<float32>[dimensions]``, which any reader of
      Parquet knows, and the row is null;
    * ``"numpy"`` (Ray's default) or ``"default"``: float32 of shape (n, dimensions), which Ray
      stores as its tensor type, and the row is NaN.

    Pickles without a live client, and without a key unless one is carried by ``DriverKey``.

    Args:
        api_key: ``None`` takes ``NEXUSFLOW_API_KEY`` of the worker's environment. A ``DriverKey``,
            or another object with ``get_secret_value``, brings it from the driver. Plain text is
            not accepted: Ray may print it.
        text: Name of the column of texts.
        embedding: Name of the column of vectors.
        error: Name of the column of errors.
        dimensions: As for ``NexusFlow``, but never left to the server.
        limits: Limits and budget of the whole cluster.
        on_error: What becomes of a failure that is no text's fault (no balance, budget used up,
            retries used up): ``"raise"`` it, which ends the job, or ``"collect"`` it as the error
            of all texts of the batch that are not finished.
        client: All else is handed to ``NexusFlow``.

    Raises:
        ConfigurationError: A setting is impossible.
    """

    @secret_arguments
    def __init__(
        self,
        api_key: object = None,
        *,
        text: str = "text",
        embedding: str = "embedding",
        error: str = "embedding_error",
        dimensions: int = DIMENSIONS,
        limits: ClusterLimits | None = None,
        on_error: Literal["raise", "collect"] = "raise",
        **client: Unpack[ClientSettings],
    ) -> None:
        if isinstance(api_key, str):
            raise ConfigurationError(
                "Ray may print a key that is plain text: set NEXUSFLOW_API_KEY where the workers"
                " run, or pass api_key=DriverKey()"
            )
        if limits is not None and not isinstance(limits, ClusterLimits):
            raise checks.refuse("limits", "a ClusterLimits or None", limits)
        if (size := check_dimensions(dimensions)) is None:
            raise ConfigurationError("dimensions must be given: all blocks must agree on one size")
        client["default_headers"] = Headers(client.get("default_headers"))
        self._api_key = api_key
        self._text = checks.text("text", text, "the name of a column")
        self._embedding = checks.text("embedding", embedding, "the name of a column")
        self._error = checks.text("error", error, "the name of a column")
        if self._embedding == self._error:
            raise ConfigurationError("error must be another column than embedding")
        self._collect = checks.one_of("on_error", on_error, ("raise", "collect")) == "collect"
        self._options: ClientSettings = {**client, **_shared(limits)}
        self._dimensions = size
        self._client: NexusFlow | None = None
        self._new_client()  # so that a mistake is found before the first text

    async def __call__(self, batch: Any) -> Any:
        """Return ``batch`` with the two columns added."""
        texts = _column(batch, self._text)
        if self._client is None:
            self._client = self._new_client()
        vectors = np.full((len(texts), self._dimensions), np.nan, dtype=np.float32)
        errors = np.full(len(texts), "not embedded", dtype=object)
        try:
            async for item in self._client.aembed_stream(texts, ordered=False):
                if item.vector is not None:
                    vectors[item.index] = item.vector
                errors[item.index] = None if item.error is None else _sentence(item.error)
        except NexusFlowError as error:
            if not self._collect:
                raise
            for index, vector in error.finished.items():
                vectors[index], errors[index] = vector, None
            errors[errors == "not embedded"] = _sentence(error)
        finally:
            # Ray ends a worker that has no more to do without a word; this may have been its last.
            await self._client._agive_back()
        return _with_columns(batch, {self._embedding: vectors, self._error: errors})

    def _new_client(self) -> NexusFlow:
        return NexusFlow(self._api_key, dimensions=self._dimensions, **self._options)

    def __repr__(self) -> str:
        told = vars(self)  # without columns in the traceback of an error in its making
        return f"EmbedBatch(text={told.get('_text')!r}, embedding={told.get('_embedding')!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}


def _shared(limits: ClusterLimits | None) -> ClientOptions:
    shared: ClientOptions = {}
    if limits is not None and (limits.requests_per_minute or limits.tokens_per_minute):
        shared["pacer"] = limits
    if limits is not None and limits.tokens is not None:
        shared["budget"] = limits
    return shared


def _sentence(error: NexusFlowError) -> str:
    # Its number is that in the batch, which means nothing in the dataset.
    return f"{type(error).__name__}: {re.sub('^text [0-9]+ ', 'the text ', str(error))}"


def _column(batch: Any, name: str) -> list[str]:
    names = batch.column_names if isinstance(batch, pa.Table) else list(batch)
    if name not in names:
        raise ConfigurationError(f"there is no column {name!r} among {', '.join(map(repr, names))}")
    column = batch[name]
    return cast("list[str]", column.to_pylist() if isinstance(batch, pa.Table) else list(column))


def _with_columns(batch: Any, columns: dict[str, Any]) -> Any:
    if not isinstance(batch, pa.Table):
        return {**batch, **columns}
    for name, values in columns.items():
        array = _fixed_size_lists(values) if values.ndim == 2 else pa.array(values, pa.string())
        if name in batch.column_names:
            batch = batch.drop_columns([name])
        batch = batch.append_column(name, array)
    return batch


def _fixed_size_lists(vectors: Vectors) -> pa.FixedSizeListArray:
    numbers = pa.array(vectors.reshape(-1))
    missing = pa.array(np.isnan(vectors).any(axis=1))
    return pa.FixedSizeListArray.from_arrays(numbers, vectors.shape[1], mask=missing)


class ClusterState(NamedTuple):
    """What the actor of some ``ClusterLimits`` has done.

    Attributes:
        workers: Processes that asked for send times in the last ten seconds.
        leases: How often send times were asked for since the actor started.
        requests: How many send times were granted in them.
        granted: Tokens of the budget that are spent or held by a worker.
        restarted: Whether this actor took over from one that died.
    """

    workers: int
    leases: int
    requests: int
    granted: int
    restarted: bool


_inherited: list[Any] = []


class _Told(NamedTuple):
    requests_per_minute: float | None
    tokens_per_minute: float | None
    tokens: int | None


class ClusterLimits:
    """Limits and budget of one account, kept for a whole Ray cluster by one named actor.

    Give it to ``EmbedBatch(limits=...)``, or to any ``NexusFlow`` in the cluster as ``pacer=``, as
    ``budget=`` or as both. Workers reserve a tenth of a second of the pace at once and draw parts
    of the budget ahead, so the actor is asked a few times a second by each, not for each request.

    A worker that dies costs at most what it held: its send times pass unused, its part of the
    budget counts as spent. An actor that dies is started again by Ray, or by the next worker that
    asks; it takes over from what is saved in the cluster's control store (the GCS) and never grants
    a token twice. While it cannot be asked, each worker paces alone to an equal share of the
    limits, and nothing is sent that needs more of the budget.

    What was spent is remembered under ``name`` as long as the cluster lives, also when another
    job uses the same name, until ``stop`` is called.

    Args:
        requests_per_minute: Limit of the account; ``None`` is none.
        tokens_per_minute: The same for tokens.
        budget: The most that the cluster may spend.
        price: Price list for a budget in money; the default is the API page's.
        name: Name of the actor: one for each account and model.
        namespace: Ray namespace of the actor.
        detached: Let the actor outlive the process that started it, and all jobs.

    Raises:
        ConfigurationError: A limit is impossible.
    """

    patience = ASK_TIMEOUT
    """Seconds that a worker waits for send times before it paces alone."""

    def __init__(
        self,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        budget: Budget | None = None,
        price: Price | None = None,
        name: str = "nexusflow",
        namespace: str = "nexusflow",
        detached: bool = False,
    ) -> None:
        if budget is not None and not isinstance(budget, Budget):
            raise checks.refuse("budget", "a Budget or None", budget)
        at = check_price(price)
        tokens = None if budget is None else budget.in_tokens(at)
        requests_per_minute = checks.optional_number("requests_per_minute", requests_per_minute)
        tokens_per_minute = checks.optional_number("tokens_per_minute", tokens_per_minute)
        self.name = checks.word("name", name, "the name of an actor")
        self.namespace = checks.word("namespace", namespace, "the name of a namespace of Ray")
        self.detached = checks.flag("detached", detached)
        self._told = _Told(requests_per_minute, tokens_per_minute, tokens)
        self._begin()

    def _begin(self) -> None:
        self._asking = forks.Lock()
        self._reset()
        forks.in_child(self._forget)

    def _forget(self) -> None:
        # A call of the child must not go out under the parent's name. The handle is kept: to
        # collect it would ask the parent's cluster.
        _inherited.append(self._actor)
        self._reset()

    def _reset(self) -> None:
        self._worker = uuid.uuid4().hex
        self._actor: Any = None
        self._processes = 1
        # One holder for each thread that draws, which is one for each client: the actor tells its
        # calls apart by their numbers, so they must arrive in order.
        self._drawer = threading.local()
        self._held_until = float("-inf")

    @property
    def requests_per_minute(self) -> float | None:
        """Limit of the account; ``None`` is none."""
        return self._told.requests_per_minute

    @property
    def tokens_per_minute(self) -> float | None:
        """The same for tokens."""
        return self._told.tokens_per_minute

    @property
    def tokens(self) -> int:
        """The budget in tokens; ``None`` (only for ``EmbedBatch`` to see) where there is none."""
        return cast(int, self._told.tokens)

    @property
    def processes(self) -> int:
        """How many workers asked of late."""
        return self._processes

    # -- the actor's life ----------------------------------------------------------------------

    def start(self) -> Self:
        """Start the actor, or find it; called by the driver, so that it lives as long as the job.

        An actor that a worker had to start ends with this worker unless it is ``detached``.

        Raises:
            ConfigurationError: An actor of this name keeps other limits.
        """
        kept = _Told(*self._call("told", timeout=DRAW_TIMEOUT))
        if kept != self._told:
            raise ConfigurationError(
                f"the actor {self.name!r} keeps other limits ({kept}): stop() it, or use another"
                " name"
            )
        return self

    def stop(self) -> None:
        """End the actor, and forget what was spent."""
        self._call("forget", timeout=DRAW_TIMEOUT)
        ray.kill(self._actor)
        self._actor = None

    def state(self) -> ClusterState:
        """Return what the actor has done."""
        return ClusterState(*self._call("state", timeout=DRAW_TIMEOUT))

    # -- what a client asks --------------------------------------------------------------------

    def lease(
        self, count: int, tokens: int, *, owed_tokens: float = 0.0, late: float = 0.0
    ) -> list[float]:
        """Reserve send times, as ``SharedLimits`` says."""
        held = max(0.0, self._held_until - time.monotonic())
        call = (self._worker, count, tokens, owed_tokens, late, held)
        waits, self._processes = self._call("lease", *call, timeout=ASK_TIMEOUT)
        self._held_until = time.monotonic() + waits[-1]
        return cast("list[float]", waits)

    def owe(self, tokens: float, late: float = 0.0) -> None:
        """Charge ``tokens`` (give them back if less than 0), and ``late`` seconds."""
        self._call("owe", tokens, late, timeout=ASK_TIMEOUT)

    def throttled(self, ago: float) -> None:
        """Note a refusal of a request sent ``ago`` seconds ago: all workers yield."""
        self._call("throttled", ago, timeout=ASK_TIMEOUT)

    def draw(self, least: int, wanted: int, unused: int, kept: int) -> Grant:
        """Draw from the budget, as ``SharedBudget`` says."""
        drawer = self._drawer
        if not hasattr(drawer, "name"):
            drawer.name, drawer.draws = uuid.uuid4().hex, 0
        drawer.draws += 1
        call = (drawer.name, drawer.draws, least, wanted, unused, kept)
        return Grant(*self._call("draw", *call, timeout=DRAW_TIMEOUT))

    # -- inside --------------------------------------------------------------------------------

    def _call(self, method: str, *arguments: Any, timeout: float) -> Any:
        try:
            return self._ask(method, arguments, timeout)
        except RayActorError:  # it is gone for good, with the worker that had started it
            self._actor = None
            return self._ask(method, arguments, timeout)

    def _ask(self, method: str, arguments: tuple[Any, ...], timeout: float) -> Any:
        with self._asking:
            if self._actor is None:
                options = {
                    "name": self.name,
                    "namespace": self.namespace,
                    "get_if_exists": True,
                    "lifetime": "detached" if self.detached else "non_detached",
                    "num_cpus": 0,
                    "max_restarts": -1,
                    "max_task_retries": -1,
                }
                key = f"{self.namespace}/{self.name}"
                keeper = ray.remote(_Keeper).options(**options)
                self._actor = keeper.remote(key, tuple(self._told))
            actor = self._actor
        return ray.get(getattr(actor, method).remote(*arguments), timeout=timeout)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClusterLimits) and self.__getstate__() == other.__getstate__()

    def __hash__(self) -> int:
        return hash(self.__getstate__())

    def __repr__(self) -> str:
        if "_told" not in vars(self):
            return "ClusterLimits()"  # in the traceback of an error that kept it from being made
        return f"ClusterLimits(name={self.name!r}, namespace={self.namespace!r}, {self._told})"

    def __getstate__(self) -> tuple[Any, ...]:
        return self._told, self.name, self.namespace, self.detached

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._told, self.name, self.namespace, self.detached = state
        self._begin()


class _Keeper:
    """The actor: the arithmetic of the core, and what must outlive the process saved in the GCS.

    Args:
        key: Under which the granted tokens are saved.
        told: The fields of ``_Told``.
    """

    def __init__(self, key: str, told: tuple[Any, ...]) -> None:
        self._key = key
        self._told = _Told(*told)
        self._limits = SlotLimits(self._told.requests_per_minute, self._told.tokens_per_minute)
        saved = internal_kv._internal_kv_get(key, namespace=_SPACE)
        self._restarted = saved is not None
        self._saved: int = json.loads(saved) if saved is not None else 0
        self._grants = Grants(self._told.tokens or 0, granted=self._saved)
        self._answers: dict[str, tuple[int, Grant]] = {}
        self._seen: dict[str, float] = {}
        self._leases = self._requests = 0
        if self._restarted:
            self._limits.hold(time.monotonic() + RESTART_PAUSE)
        else:
            self._save(0)

    def _save(self, granted: int) -> None:
        internal_kv._internal_kv_put(self._key, json.dumps(granted), namespace=_SPACE)
        self._saved = granted

    def told(self) -> tuple[Any, ...]:
        return tuple(self._told)

    def forget(self) -> None:
        internal_kv._internal_kv_del(self._key, namespace=_SPACE)

    def state(self) -> tuple[Any, ...]:
        workers = self._workers(time.monotonic())
        return workers, self._leases, self._requests, self._grants.granted, self._restarted

    def _workers(self, now: float) -> int:
        return sum(now - seen < ACTIVE for seen in self._seen.values())

    def lease(
        self, worker: str, count: int, tokens: int, owed: float, late: float, held: float
    ) -> tuple[list[float], int]:
        now = time.monotonic()
        if worker not in self._seen:
            self._limits.hold(now + held)  # granted to it by the actor before this one
        self._seen[worker] = now
        self._limits.owe(owed, late)
        waits = [self._limits.slot(tokens, now) - now for _ in range(count)]
        self._leases += 1
        self._requests += count
        return waits, self._workers(now)

    def owe(self, tokens: float, late: float) -> None:
        self._limits.owe(tokens, late)

    def throttled(self, ago: float) -> None:
        now = time.monotonic()
        self._limits.throttled(sent_at=now - ago, now=now, hint=None)

    def draw(
        self, worker: str, number: int, least: int, wanted: int, unused: int, kept: int
    ) -> tuple[Any, ...]:
        last, answer = self._answers.get(worker, (0, Grant(0, 0, False)))
        if number <= last:  # Ray asked again what was done before
            return tuple(answer)
        answer = self._grants.draw(
            worker, least=least, wanted=wanted, unused=unused, kept=kept, now=time.monotonic()
        )
        granted, limit = self._grants.granted, self._grants.limit
        # Before anyone can spend it. Ahead of use, so that few grants wait for this.
        if granted > self._saved:
            self._save(min(limit, granted + limit // SAVE_AHEAD))
        elif self._grants.at_rest and self._saved > granted:
            self._save(granted)
        self._answers[worker] = (number, answer)
        return tuple(answer)


_SPACE = "nexusflow_integrations"
