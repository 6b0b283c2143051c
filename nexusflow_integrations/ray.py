"""NexusFlow in Ray Data: ``EmbedBatch`` for ``Dataset.map_batches``, and ``ClusterLimits``.

Importing this module does not start or connect to Ray. A worker creates its client when it gets its
first batch. One named actor keeps the limits and the budget of the account for the whole cluster.
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
"""The model's default size: all blocks need the same size before the first response."""
RESTART_PAUSE = 1.0
"""Seconds after a restart in which the actor permits no requests.

Requests that the previous actor permitted may still be sent, and the server counts the requests in
each second.
"""
ACTIVE = 10.0
"""Seconds for which a worker counts as active after it last reserved send times."""
ASK_TIMEOUT = 20.0
"""Seconds to wait for the actor, which may be restarting, before a worker continues alone."""
DRAW_TIMEOUT = 60.0
"""Seconds to wait for a part of the budget, without which nothing is sent."""
SAVE_AHEAD = 200
"""The actor saves the budget as spent in this many steps, of which a restart may lose one."""


class DriverKey:
    """The driver's API key, for workers without a key in their environment.

    The ``repr`` shows asterisks, because Ray prints arguments. The key is not encrypted: Ray keeps
    the pickled arguments of the constructor in its object store, where anyone who can run code on
    the cluster can read them. A key in the environment of each worker is safer.

    Args:
        value: The key, or an object with ``get_secret_value``. Default: ``NEXUSFLOW_API_KEY`` of
            the driver.

    Raises:
        ConfigurationError: The key is missing or not valid.
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
    """Embeds one column of a dataset: ``ds.map_batches(EmbedBatch, compute=..., ...)``.

    The result has a column of vectors and a column of errors; all other columns are unchanged. A
    text that cannot be sent, or that the server refuses, gets no vector and a message in the error
    column (null for all others); the rest of the batch is embedded. ``batch_format`` decides how a
    missing vector is stored:

    * ``"pyarrow"``: the column is ``FixedSizeList<float32>[dimensions]``, which any Parquet reader
      supports, and the row is null;
    * ``"numpy"`` (Ray's default) or ``"default"``: float32 of shape (n, dimensions), which Ray
      stores as its tensor type, and the row is NaN.

    Pickles contain no client, and no key except that of the object given as ``api_key``.

    Args:
        api_key: ``None`` reads ``NEXUSFLOW_API_KEY`` from the worker's environment. A
            ``DriverKey``, or another object with ``get_secret_value``, brings the key from the
            driver. A plain string is not accepted, because Ray may print it.
        text: Name of the column of texts.
        embedding: Name of the column of vectors.
        error: Name of the column of errors.
        dimensions: Size of the vectors, as for ``NexusFlow``, but never ``None``: all blocks need
            the same size.
        limits: Limits and budget of the whole cluster.
        on_error: What to do with a failure that no single text caused (no balance, budget or
            retries used up): ``"raise"`` raises it, which ends the job; ``"collect"`` makes it the
            error of all unfinished texts of the batch.
        client: Other settings of ``NexusFlow``. ``on_refused`` and ``on_blank`` have no effect.

    Raises:
        ConfigurationError: A setting is invalid.
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
                "Ray may print a key that is a plain string: set NEXUSFLOW_API_KEY where the"
                " workers run, or pass api_key=DriverKey()"
            )
        if limits is not None and not isinstance(limits, ClusterLimits):
            raise checks.refuse("limits", "a ClusterLimits or None", limits)
        if (size := check_dimensions(dimensions)) is None:
            raise ConfigurationError("dimensions is required: all blocks need the same size")
        client["default_headers"] = Headers(client.get("default_headers"))
        self._api_key = api_key
        self._text = checks.text("text", text, "the name of a column")
        self._embedding = checks.text("embedding", embedding, "the name of a column")
        self._error = checks.text("error", error, "the name of a column")
        if self._embedding == self._error:
            raise ConfigurationError("error and embedding must be different columns")
        self._collect = checks.one_of("on_error", on_error, ("raise", "collect")) == "collect"
        self._options: ClientSettings = {**client, **_shared(limits)}
        self._dimensions = size
        self._client: NexusFlow | None = None
        self._new_client()  # validate the settings now instead of at the first batch

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
            # Return tokens now: this may be the last batch, and Ray kills idle workers without
            # notice.
            await self._client._agive_back()
        return _with_columns(batch, {self._embedding: vectors, self._error: errors})

    def _new_client(self) -> NexusFlow:
        return NexusFlow(self._api_key, dimensions=self._dimensions, **self._options)

    def __repr__(self) -> str:
        own = vars(self)  # attributes are missing if the constructor failed
        return f"EmbedBatch(text={own.get('_text')!r}, embedding={own.get('_embedding')!r})"

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
    # Remove the index in the batch, which means nothing in the dataset.
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
    """The state of the actor of a ``ClusterLimits``.

    Attributes:
        workers: Processes that asked for send times in the last ten seconds.
        leases: How often send times were requested since the actor started.
        requests: How many send times were granted.
        granted: Tokens of the budget that are spent or that a worker holds.
        restarted: Whether this actor replaced one that died.
    """

    workers: int
    leases: int
    requests: int
    granted: int
    restarted: bool


_inherited: list[Any] = []


class _Settings(NamedTuple):
    requests_per_minute: float | None
    tokens_per_minute: float | None
    tokens: int | None


class ClusterLimits:
    """The limits and budget of one account for a whole Ray cluster, which one named actor keeps.

    Pass it to ``EmbedBatch(limits=...)``, or to any ``NexusFlow`` in the cluster as ``pacer=``,
    ``budget=`` or both. Workers reserve send times for a tenth of a second and draw parts of the
    budget ahead, so each worker calls the actor a few times per second instead of for each request.

    If a worker dies, at most what it has reserved is wasted: its send times expire, and its part of
    the budget counts as spent. If the actor dies, Ray restarts it, or the next worker that calls it
    does. The new actor continues from the state that is saved in the cluster's control store (GCS)
    and never grants a token twice. While the actor cannot be reached, each worker limits itself to
    an equal share of the limits, and requests that need more of the budget are not sent.

    The tokens spent are stored under ``name`` until ``stop`` is called or the cluster ends, also
    for later jobs that use the same name.

    Args:
        requests_per_minute: The account's limit on requests; ``None`` for no limit.
        tokens_per_minute: The account's limit on tokens; ``None`` for no limit.
        budget: The most that the cluster may spend.
        price: The price for a budget in money; by default, the API's list price.
        name: Name of the actor. Use one name for each account and model.
        namespace: Ray namespace of the actor.
        detached: Whether the actor outlives the process that started it, and all jobs.

    Raises:
        ConfigurationError: A setting is invalid.
    """

    patience = ASK_TIMEOUT
    """Seconds that a worker waits for the actor before it limits itself to its share."""

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
        self._settings = _Settings(requests_per_minute, tokens_per_minute, tokens)
        self._begin()

    def _begin(self) -> None:
        self._asking = forks.Lock()
        self._reset()
        forks.in_child(self._forget)

    def _forget(self) -> None:
        # The child needs its own worker id. Keep the handle: if it were freed, Ray would
        # call the parent's cluster.
        _inherited.append(self._actor)
        self._reset()

    def _reset(self) -> None:
        self._worker = uuid.uuid4().hex
        self._actor: Any = None
        self._processes = 1
        # Each thread that draws has its own holder name, and each client has one such thread. The
        # actor detects repeated calls by their numbers, so the calls of one holder must
        # arrive in order.
        self._drawer = threading.local()
        self._held_until = float("-inf")

    @property
    def requests_per_minute(self) -> float | None:
        """Limit of the account; ``None`` for no limit."""
        return self._settings.requests_per_minute

    @property
    def tokens_per_minute(self) -> float | None:
        """Limit of the account on tokens; ``None`` for no limit."""
        return self._settings.tokens_per_minute

    @property
    def tokens(self) -> int:
        """The budget in tokens; ``None`` if there is none (``EmbedBatch`` checks for that)."""
        return cast(int, self._settings.tokens)

    @property
    def processes(self) -> int:
        """How many workers asked for send times recently."""
        return self._processes

    # -- lifecycle -----------------------------------------------------------------------------

    def start(self) -> Self:
        """Start the actor or connect to it. Call this in the driver.

        An actor ends with the process that started it, unless it is ``detached``.

        Raises:
            ConfigurationError: The actor with this name has other limits.
        """
        kept = _Settings(*self._call("settings", timeout=DRAW_TIMEOUT))
        if kept != self._settings:
            raise ConfigurationError(
                f"the actor {self.name!r} has other limits ({kept}): call stop(),"
                " or use another name"
            )
        return self

    def stop(self) -> None:
        """End the actor, and reset the tokens spent to 0."""
        self._call("forget", timeout=DRAW_TIMEOUT)
        ray.kill(self._actor)
        self._actor = None

    def state(self) -> ClusterState:
        """Return the state of the actor."""
        return ClusterState(*self._call("state", timeout=DRAW_TIMEOUT))

    # -- called by clients ---------------------------------------------------------------------

    def lease(
        self, count: int, tokens: int, *, owed_tokens: float = 0.0, late: float = 0.0
    ) -> list[float]:
        """Reserve send times; see ``SharedLimits.lease``."""
        held = max(0.0, self._held_until - time.monotonic())
        call = (self._worker, count, tokens, owed_tokens, late, held)
        waits, self._processes = self._call("lease", *call, timeout=ASK_TIMEOUT)
        self._held_until = time.monotonic() + waits[-1]
        return cast("list[float]", waits)

    def adjust(self, tokens: float, late: float = 0.0) -> None:
        """Charge ``tokens`` and ``late`` seconds; refund them if negative."""
        self._call("adjust", tokens, late, timeout=ASK_TIMEOUT)

    def throttled(self, ago: float) -> None:
        """Slow all workers down: a request sent ``ago`` seconds ago exceeded the rate limit."""
        self._call("throttled", ago, timeout=ASK_TIMEOUT)

    def draw(self, least: int, wanted: int, unused: int, kept: int) -> Grant:
        """Draw from the budget; see ``SharedBudget.draw``."""
        drawer = self._drawer
        if not hasattr(drawer, "name"):
            drawer.name, drawer.draws = uuid.uuid4().hex, 0
        drawer.draws += 1
        call = (drawer.name, drawer.draws, least, wanted, unused, kept)
        return Grant(*self._call("draw", *call, timeout=DRAW_TIMEOUT))

    # -- internal ------------------------------------------------------------------------------

    def _call(self, method: str, *arguments: Any, timeout: float) -> Any:
        try:
            return self._ask(method, arguments, timeout)
        except RayActorError:  # the actor ended with the worker that had started it
            self._actor = None
            return self._ask(method, arguments, timeout)

    def _ask(self, method: str, arguments: tuple[Any, ...], timeout: float) -> Any:
        with self._asking.mutex:
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
                coordinator = ray.remote(_Coordinator).options(**options)
                self._actor = coordinator.remote(key, tuple(self._settings))
            actor = self._actor
        return ray.get(getattr(actor, method).remote(*arguments), timeout=timeout)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClusterLimits) and self.__getstate__() == other.__getstate__()

    def __hash__(self) -> int:
        return hash(self.__getstate__())

    def __repr__(self) -> str:
        if "_settings" not in vars(self):
            return "ClusterLimits()"  # for a traceback, if the constructor failed
        return f"ClusterLimits(name={self.name!r}, namespace={self.namespace!r}, {self._settings})"

    def __getstate__(self) -> tuple[Any, ...]:
        return self._settings, self.name, self.namespace, self.detached

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._settings, self.name, self.namespace, self.detached = state
        self._begin()


class _Coordinator:
    """The actor: hands out send times and tokens, and saves the granted tokens in the GCS.

    Args:
        key: Key of the granted tokens in the GCS.
        settings: The fields of ``_Settings``.
    """

    def __init__(self, key: str, settings: tuple[Any, ...]) -> None:
        self._key = key
        self._settings = own = _Settings(*settings)
        self._limits = SlotLimits(own.requests_per_minute, own.tokens_per_minute)
        saved = internal_kv._internal_kv_get(key, namespace=_SPACE)
        self._restarted = saved is not None
        self._saved: int = json.loads(saved) if saved is not None else 0
        self._grants = Grants(own.tokens or 0, granted=self._saved)
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

    def settings(self) -> tuple[Any, ...]:
        return tuple(self._settings)

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
            # Wait for send times that the previous actor granted to this worker.
            self._limits.hold(now + held)
        self._seen[worker] = now
        self._limits.adjust(owed, late)
        waits = [self._limits.slot(tokens, now) - now for _ in range(count)]
        self._leases += 1
        self._requests += count
        return waits, self._workers(now)

    def adjust(self, tokens: float, late: float) -> None:
        self._limits.adjust(tokens, late)

    def throttled(self, ago: float) -> None:
        now = time.monotonic()
        self._limits.throttled(sent_at=now - ago, now=now, hint=None)

    def draw(
        self, worker: str, number: int, least: int, wanted: int, unused: int, kept: int
    ) -> tuple[Any, ...]:
        last, answer = self._answers.get(worker, (0, Grant(0, 0, False)))
        if number <= last:  # Ray has repeated a call that was already done
            return tuple(answer)
        answer = self._grants.draw(
            worker, least=least, wanted=wanted, unused=unused, kept=kept, now=time.monotonic()
        )
        granted, limit = self._grants.granted, self._grants.limit
        # Save before the tokens can be spent. Save more than is granted, so that few draws have
        # to wait for a write.
        if granted > self._saved:
            self._save(min(limit, granted + limit // SAVE_AHEAD))
        elif self._grants.at_rest and self._saved > granted:
            self._save(granted)
        self._answers[worker] = (number, answer)
        return tuple(answer)


_SPACE = "nexusflow_integrations"
