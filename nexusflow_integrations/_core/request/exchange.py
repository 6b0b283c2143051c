"""Embeds one batch: decides when to send, retry, split or give up, without doing any I/O.

``exchange`` is a generator. It yields the steps that must be done and receives their results:

* ``Send``: wait for admission and send a request; receives a ``Reply``;
* ``Sleep``: wait a number of seconds; receives ``None``;
* ``Follow``: wait until an outage ends; receives ``None``;
* ``Renew``: get another API key after a 401; receives whether there is one;
* ``AwaitSettled``: wait until another request on the same budget has ended; receives ``None``.

Vectors and refusals go to the call's ``sink`` as they become known, so nothing is lost if a later
step fails. The generator raises the errors of ``nexusflow_integrations.errors``. ``job.drive`` runs
it on an event loop; tests step through it without sockets or sleeping.
"""

from __future__ import annotations

import re
from asyncio import AbstractEventLoop
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from reprlib import recursive_repr
from threading import get_ident
from typing import TYPE_CHECKING, Any, Literal, Protocol

from nexusflow_integrations._core.counts import count
from nexusflow_integrations._core.log import logger
from nexusflow_integrations._core.request import retry
from nexusflow_integrations._core.request.batching import Batch, Item, halves, plan_batches
from nexusflow_integrations._core.request.endpoint import EndpointState, Outage
from nexusflow_integrations._core.request.failures import (
    MAX_ERROR_BYTES,
    TOO_LONG,
    Failure,
    Kind,
    clean,
    judge,
    judge_ok_error,
)
from nexusflow_integrations._core.request.long_texts import (
    PIECE,
    SHORTEST,
    Pieces,
    pieces_of,
    truncated,
)
from nexusflow_integrations._core.request.tokens import token_bound
from nexusflow_integrations._core.request.wire import (
    Answer,
    BrokenResponse,
    Rows,
    TransportFault,
    WrongDimensions,
    decode_response,
    decompress,
    encode_request,
    max_body,
)
from nexusflow_integrations._core.secret import ApiKey, Secret
from nexusflow_integrations._core.settings import Settings
from nexusflow_integrations._core.usage import BudgetGuard, Ledger
from nexusflow_integrations._core.vectors import Vectors
from nexusflow_integrations.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BudgetExceededError,
    InvalidInputError,
    InvalidResponseError,
    NexusFlowError,
    NotFoundError,
)

if TYPE_CHECKING:
    from nexusflow_integrations._core.key_sources import FunctionKey, KeySource
    from nexusflow_integrations._core.pace.terms import Terms
    from nexusflow_integrations._core.redis.address import RedisAddress


_VERSION = re.compile(r"/v[0-9]")
_CUTTING = ("split", "truncate")
"""The values of ``on_too_long`` with which long texts are split or truncated."""


@dataclass(slots=True)
class Send:
    """Wait for admission with about ``tokens``, then send ``body`` within ``timeout`` seconds.

    ``batch`` holds the texts of ``body``. The driver sets ``admitted`` once the admission queue
    has admitted the request: from then on, the request may be billed.
    """

    body: bytes
    batch: Batch
    tokens: int
    timeout: float
    urgent: bool
    encoding: Literal["base64", "float"]
    admitted: bool = False


@dataclass(slots=True)  # not frozen, because that makes creating one slower
class Reply:
    """The result of a ``Send``, with the monotonic times, in seconds, of its start and end."""

    outcome: Answer | TransportFault
    sent_at: float
    ended_at: float


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait ``seconds``."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Follow:
    """Wait until ``outage`` is over."""

    outage: Outage


@dataclass(frozen=True, slots=True)
class AwaitSettled:
    """Wait until the budget ``guard`` knows what another request was billed."""

    guard: BudgetGuard


@dataclass(frozen=True, slots=True)
class Renew:
    """Replace the call's key ``refused`` with another; the result is whether there is one."""

    refused: ApiKey
    renew: Callable[[ApiKey | None], Awaitable[bool]]


Step = Send | Sleep | Follow | AwaitSettled | Renew
Steps = Generator[Step, Any, None]


class Sink(Protocol):
    """Receives results as they become known."""

    def rows(self, batch: Batch, vectors: Vectors) -> None:
        """Take the ``vectors`` of ``batch``, float32 of shape (len(batch), d)."""

    def refused(self, item: Item, error: APIStatusError) -> None:
        """Take the server's refusal of one text."""

    def is_refused(self, item: Item) -> bool:
        """Return whether ``item`` was refused."""


@dataclass
class LearntSize:
    """The size of a client's vectors if ``dimensions`` is not set: the size in the first response.

    ``said`` says whether a warning about truncated texts was logged.
    """

    dimensions: int | None = None
    said: bool = False


@dataclass(eq=False, kw_only=True, repr=False)
class Call:
    """One call: the fields up to ``thread`` are set when it is made; the engine sets the others.

    ``until`` is the deadline in monotonic seconds. ``stopping`` is set when the call is going to
    fail: then the tasks in ``in_flight``, which have sent a request, may finish, but nothing more
    is sent. ``shortened`` holds the indices of texts that were too long. ``unsent`` holds the
    errors of texts that are left out, by index. ``thread`` is the id of the thread that made the
    call. ``sent`` is the request that the caller has already sent, with the reply.
    ``opens_connection`` says whether the background loop must open a connection for the callers'
    loops (see ``opening``).
    """

    texts: Sequence[str]
    settings: Settings
    key: ApiKey | None
    ledger: Ledger
    keys: KeySource | None = None
    urgent: bool = False
    guard: BudgetGuard | None = None
    size: LearntSize = field(default_factory=LearntSize)
    http_client: Any = None
    async_http_client: Any = None
    client_loop: AbstractEventLoop | None = None
    cache: str | RedisAddress | None = None
    terms: Terms | None = None
    lists: bool = False
    unsent: Mapping[int, InvalidInputError] = field(default_factory=dict)
    derive: bool = False
    thread: int = field(default_factory=get_ident)

    endpoint: EndpointState = field(init=False)
    sink: Sink = field(init=False)
    until: float = field(init=False, default=float("inf"))
    stopping: bool = field(init=False, default=False)
    in_flight: set[object] = field(init=False, default_factory=set)
    shortened: set[int] = field(init=False, default_factory=set)
    sender: Any = field(init=False, default=None)
    opens_connection: bool = field(init=False, default=False)
    renew: Callable[[ApiKey | None], Awaitable[bool]] | None = field(init=False, default=None)
    proven: ApiKey | None = field(init=False, default=None)
    old_keys: list[ApiKey] = field(init=False, default_factory=list)
    sent: tuple[Send, Reply] | None = field(init=False, default=None)

    @recursive_repr("Call(...)")
    def __repr__(self) -> str:
        # Tools that show the variables of a traceback may show a call before its fields are set.
        values = (f"{name}={value!r}" for name, value in vars(self).copy().items())
        return f"Call({', '.join(values)})"

    @property
    def secrets(self) -> list[Secret]:
        """The API keys and secret headers, to be removed from a server's texts."""
        keys = [] if self.key is None else [self.key]
        return [*keys, *self.old_keys, *self.settings.default_headers.secrets()]

    @property
    def account(self) -> ApiKey | FunctionKey:
        """A value that identifies the account, even if the key changes."""
        if self.keys is not None:
            return self.keys.account
        assert self.key is not None
        return self.key


class Stopped(Exception):  # noqa: N818 - it never leaves the core
    """The call has failed in another batch, so this batch is given up without a result."""


def exchange(
    batch: Batch, call: Call, ledger: Ledger | None = None, sink: Sink | None = None
) -> Steps:
    """Embed ``batch``; retry and split it as needed.

    ``ledger`` counts the usage, and ``sink`` gets the results; by default, both belong to the call.

    Raises:
        NexusFlowError: The call cannot succeed, because the error is permanent, or because retries,
            time or budget ran out. Vectors that finished before are in the sink.
    """
    ledger, sink = ledger or call.ledger, sink or call.sink
    if call.settings.on_too_long in _CUTTING:
        batch = yield from _shortened(batch, call, ledger, sink)
        if not batch:
            return
    limit = call.endpoint.batch_limit
    if limit is not None and len(batch) > limit:
        for piece in plan_batches(batch, max_texts=limit):
            yield from exchange(piece, call, ledger, sink)
        return
    failure = yield from _send_until_judged(batch, call, ledger, sink)
    if failure is None:
        return
    if failure.kind is Kind.BATCH_LIMIT:
        call.endpoint.learn_batch_limit(min(failure.batch_limit or 1, len(batch) - 1))
        yield from exchange(batch, call, ledger, sink)
    elif len(batch) > 1:
        yield from _bisect(batch, call, failure, ledger, sink)
    elif (
        call.settings.on_too_long in _CUTTING
        and len(batch[0].text) > SHORTEST
        and TOO_LONG.search(str(failure.error))
    ):
        yield from _shorter(batch[0], call, ledger, sink)
    else:
        _refuse(batch[0], failure.error, ledger, sink)


def _refuse(item: Item, error: APIStatusError, ledger: Ledger, sink: Sink) -> None:
    if not isinstance(sink, Pieces):  # a text in pieces is counted once, not here
        ledger.refused += 1
    sink.refused(item, error)


def _shortened(batch: Batch, call: Call, ledger: Ledger, sink: Sink) -> Generator[Step, Any, Batch]:
    """Split or truncate texts that are too long; return the items that remain to be sent."""
    limit = call.settings.token_limit or 0
    if all(item.tokens <= limit for item in batch):
        return batch
    if call.settings.on_too_long == "truncate":
        return [_truncate(item, limit, call, ledger) for item in batch]
    for item in batch:
        if item.tokens > limit:
            yield from _in_pieces(item, PIECE * limit, call, ledger, sink)
    return [item for item in batch if item.tokens <= limit]


def _shorter(item: Item, call: Call, ledger: Ledger, sink: Sink) -> Steps:
    """Split or truncate ``item``, which the server refused as too long."""
    if call.settings.on_too_long == "split":
        yield from _in_pieces(item, item.tokens / 2, call, ledger, sink)
    else:
        yield from exchange([_truncate(item, 0.75 * item.tokens, call, ledger)], call, ledger, sink)


def _truncate(item: Item, most: float, call: Call, ledger: Ledger) -> Item:
    if item.tokens <= most:
        return item
    if item.index not in call.shortened:
        call.shortened.add(item.index)
        ledger.truncated += 1
    if not call.size.said:
        call.size.said = True
        logger.warning(
            "text %s has about %s tokens and is truncated to the %s that the model accepts; usage"
            " counts such texts, and further ones are not logged",
            item.index,
            f"{item.tokens:,}",
            f"{call.settings.token_limit:,}",
        )
    return truncated(item, most)


def _in_pieces(item: Item, most: float, call: Call, ledger: Ledger, sink: Sink) -> Steps:
    """Embed a text in pieces of ``most`` tokens; its vector is the mean of the pieces' vectors."""
    into = sink if isinstance(sink, Pieces) else Pieces()
    pieces = pieces_of(item, most)
    for batch in plan_batches(pieces, max_texts=call.settings.batch_size):
        yield from exchange(batch, call, ledger, into)
        if into.error is not None:
            break
    if into is sink:
        return
    call.shortened.add(item.index)
    ledger.split += 1
    if into.error is None:
        sink.rows([item], into.vector())
    else:
        _refuse(item, into.error, ledger, sink)


def _bisect(batch: Batch, call: Call, failure: Failure, ledger: Ledger, sink: Sink) -> Steps:
    """Send both halves separately, to find the texts at fault."""
    left, right = halves(batch)
    logger.info("a batch of %d texts was refused (%s); splitting it", len(batch), failure.error)
    yield from exchange(left, call, ledger, sink)
    certain = failure.kind is Kind.REFUSED and not TOO_LONG.search(str(failure.error))
    if certain and len(right) == 1 and not any(map(sink.is_refused, left)):
        # All other texts passed moderation, so the server must have refused this text; no request
        # is needed. (For "too long" this is unknown: the server may have meant the whole request.)
        _refuse(right[0], failure.error, ledger, sink)
        return
    yield from exchange(right, call, ledger, sink)


def _send_until_judged(
    batch: Batch, call: Call, ledger: Ledger, sink: Sink
) -> Generator[Step, Any, Failure | None]:
    """Send ``batch`` until it succeeds or fails permanently.

    Return ``None`` once its vectors are in the sink, or the failure if the batch must be split.
    Raise errors that end the call.
    """
    endpoint, settings = call.endpoint, call.settings
    tokens = sum([item.tokens for item in batch])
    attempts = retries = taken = 0
    probing: Outage | None = None
    endpoint.retry_budget.first_attempt()
    try:
        while True:
            most = 0
            if call.guard is not None:
                most = yield from _reserve(batch, call, call.guard)
                if most == 0:
                    if probing is not None:
                        # Otherwise the pieces would wait for this probe.
                        probing.end(recovered=None)
                    for piece in halves(batch):
                        yield from exchange(piece, call, ledger, sink)
                    return None
            encoding = "float" if endpoint.base64_refused else settings.encoding_format
            if call.sent is not None:
                encoding = call.sent[0].encoding  # the body must be the one that the reply answers
            body = encode_request(
                batch,
                model=settings.model,
                encoding_format=encoding,
                dimensions=settings.dimensions,
                extra=settings.extra_body.text,
            )
            step: Send | None = None
            key = call.key
            try:
                # A reply that has arrived is used even after the deadline.
                left = settings.timeout if call.sent is not None else _remaining(call)
                timeout = min(settings.timeout, left)
                step = Send(body, batch, tokens, timeout, call.urgent, encoding)
                reply: Reply = yield step
            except BaseException:
                admitted = step is not None and step.admitted
                if admitted:
                    ledger.sent(retry=attempts > 0)
                if call.guard is not None:
                    call.guard.settle(most, most if admitted else 0)
                raise
            attempts += 1
            ledger.sent(retry=attempts > 1)
            verdict = _judge(reply, batch, call)
            _settle(call, verdict, most)
            if isinstance(verdict, Rows):
                call.proven = key
                ledger.billed(verdict.tokens, tokens)
                endpoint.good(
                    reply.ended_at,
                    sent_at=reply.sent_at,
                    retries=taken,
                    estimated=tokens,
                    billed=verdict.tokens,
                )
                probing = None
                sink.rows(batch, verdict.vectors)
                return None
            kind = verdict.kind if isinstance(verdict, Failure) else Kind.FAULT
            if kind is Kind.ENCODING and encoding == "base64":
                logger.info("the server refuses base64; requesting floats from now on")
                endpoint.base64_refused = True
                continue
            if kind in (Kind.REFUSED, Kind.TOO_LARGE) or (
                kind is Kind.BATCH_LIMIT and len(batch) > 1
            ):
                return verdict if isinstance(verdict, Failure) else None
            error = _error(verdict, reply, call, attempts)
            if isinstance(error, AuthenticationError) and (yield from _renewed(key, call)):
                continue
            if kind not in (Kind.THROTTLE, Kind.FAULT) or not _retryable(verdict):
                raise error
            endpoint.bad(
                verdict if isinstance(verdict, Failure) else None, reply.sent_at, reply.ended_at
            )
            if probing is not None:
                probing.end(recovered=False)
                probing = None
            retries, probing = yield from _before_retry(call, verdict, error, retries)
            taken += probing is not None
    finally:
        if probing is not None:
            probing.end(recovered=None)


def _renewed(refused: ApiKey | None, call: Call) -> Generator[Step, Any, bool]:
    """Return whether there is a key other than the one that got a 401 response.

    A key that was refused before it had worked once is not replaced, because the next key would be
    refused, too.
    """
    if call.key is not refused:
        return True  # another batch has already replaced the key
    if refused is None or call.renew is None or call.stopping:
        return False
    if call.old_keys and call.proven != refused:
        return False
    return bool((yield Renew(refused, call.renew)))


def _before_retry(
    call: Call,
    verdict: Failure | BrokenResponse | TransportFault,
    error: NexusFlowError,
    retries: int,
) -> Generator[Step, Any, tuple[int, Outage | None]]:
    """Wait before a retry; return the number of retries and the outage that this retry probes."""
    endpoint, settings = call.endpoint, call.settings
    throttled = isinstance(verdict, Failure) and verdict.kind is Kind.THROTTLE
    hint = verdict.retry_after if isinstance(verdict, Failure) else None
    while True:
        retries += 1
        if retries > settings.max_retries or call.stopping:
            raise error
        if hint is not None:
            if hint > retry.MAX_HINT:
                raise error
            delay = retry.after_hint(hint)
        else:
            base = retry.BASE_THROTTLE if throttled else retry.BASE_FAULT
            delay = retry.backoff(retries, base)
        remaining = call.until - endpoint.clock()
        if delay >= remaining:
            if remaining <= 0 and isinstance(error, APITimeoutError):
                raise error  # the error already names the deadline
            raise _too_late(call, f"the next retry was due in {delay:.1f} s", cause=error)
        outage = endpoint.outage
        if outage is not None and not outage.over:
            asked = endpoint.clock()
            yield Follow(outage)
            if call.stopping:
                raise error
            if outage.recovered:
                if hint is not None and (rest := delay - (endpoint.clock() - asked)) > 0:
                    yield Sleep(rest)
                return retries, None
            if outage.recovered is None:
                retries -= 1  # the probe was given up before it was sent
            continue
        if not endpoint.retry_budget.take():
            if not endpoint.alive:
                raise error
            yield Sleep(delay)  # other requests succeed, so they will refill the retry budget
            continue
        outage = endpoint.outage = Outage(endpoint.clock())
        logger.info("%s; retry %d of %d in %.2f s", error, retries, settings.max_retries, delay)
        try:
            yield Sleep(delay)
        except BaseException:
            outage.end(recovered=None)
            raise
        return retries, outage


def _reserve(batch: Batch, call: Call, guard: BudgetGuard) -> Generator[Step, Any, int]:
    """Reserve and return the most tokens that ``batch`` can cost; 0 if only a part may fit."""
    most = sum(token_bound(len(item.encoded)) for item in batch)
    while not guard.reserve(most):
        if guard.pending:
            yield AwaitSettled(guard)
        elif len(batch) > 1:
            return 0
        else:
            left = guard.limit - guard.spent
            raise BudgetExceededError(
                f"the budget of {count(guard.limit, 'token')} has {left:,} left, and the next text"
                f" may cost up to {most:,}; it was not sent: raise the budget to go on"
            )
        if call.stopping:
            raise Stopped
    return most


def _settle(
    call: Call, verdict: Rows | Failure | BrokenResponse | TransportFault, most: int
) -> None:
    if call.guard is None:
        return
    if isinstance(verdict, Rows):
        billed = verdict.tokens if verdict.tokens is not None else most
    elif isinstance(verdict, Failure) or (
        isinstance(verdict, TransportFault) and not verdict.maybe_billed
    ):
        billed = 0
    else:
        billed = most  # the request may have been billed, and the budget must not be exceeded
    call.guard.settle(most, billed)


def _judge(
    reply: Reply, batch: Batch, call: Call
) -> Rows | Failure | BrokenResponse | TransportFault:
    answer = reply.outcome
    if isinstance(answer, TransportFault):
        return answer
    good = 200 <= answer.status < 300
    if encoding := answer.headers.get("content-encoding"):
        limit = max_body(len(batch)) if good else MAX_ERROR_BYTES
        try:
            body = decompress(answer.body, encoding, limit)
        except BrokenResponse as broken:
            if good:
                return broken
            body = b""
        answer = Answer(answer.status, answer.headers, body)
    if not good:
        return judge(answer, secrets=call.secrets)
    settings = call.settings
    wanted = settings.dimensions or call.size.dimensions
    try:
        rows = decode_response(
            answer.body,
            count=len(batch),
            dimensions=wanted,
            asked=settings.dimensions is not None,
        )
    except BrokenResponse as broken:
        return judge_ok_error(answer, broken, secrets=call.secrets)
    if settings.dimensions is None:
        call.size.dimensions = rows.vectors.shape[1]
    return rows


def _retryable(verdict: Failure | BrokenResponse | TransportFault) -> bool:
    if isinstance(verdict, TransportFault):
        return verdict.retryable
    return not isinstance(verdict, WrongDimensions)


def _error(
    verdict: Failure | BrokenResponse | TransportFault, reply: Reply, call: Call, attempts: int
) -> NexusFlowError:
    if isinstance(verdict, Failure):
        error = verdict.error
        error.attempts = attempts
        if isinstance(error, NotFoundError) and not _VERSION.search(call.settings.base_url):
            error.args = (
                f"{error}; base_url has no version in its path: try {call.settings.base_url}/v1",
            )
        return error
    if isinstance(verdict, TransportFault):
        if verdict.timed_out and call.until <= reply.ended_at:
            return _too_late(call, "a request was in flight")
        cls = APITimeoutError if verdict.timed_out else APIConnectionError
        return cls(clean(verdict.message, call.secrets), attempts=attempts)
    request_id = None
    if isinstance(reply.outcome, Answer) and (value := reply.outcome.headers.get("x-request-id")):
        request_id = clean(value, call.secrets, 200)
    text = f"{verdict} (request {request_id})" if request_id else f"{verdict}"
    return InvalidResponseError(text, request_id=request_id, attempts=attempts)


def _remaining(call: Call) -> float:
    if call.stopping:
        raise Stopped
    remaining = call.until - call.endpoint.clock()
    if remaining <= 0:
        raise _too_late(call, "nothing was in flight")
    return remaining


def _too_late(call: Call, doing: str, cause: NexusFlowError | None = None) -> NexusFlowError:
    error = APITimeoutError(
        f"the deadline of {call.settings.deadline:g} s has passed or would pass: {doing}"
        + (f" after {cause}" if cause else "")
    )
    error.__cause__ = cause
    return error
