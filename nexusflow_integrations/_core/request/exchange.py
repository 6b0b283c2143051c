"""One batch, from texts to vectors or to a verdict on each text: the whole policy, without I/O.

``exchange`` is a generator. It yields what it needs done and is sent what came of it:

* ``Send``: pass the admission queue and send a request; sent back a ``Reply``;
* ``Sleep``: wait so many seconds; sent back ``None``;
* ``Follow``: wait until an outage ends; sent back ``None``;
* ``Renew``: get another API key after a 401; sent back whether there is one;
* ``AwaitSettled``: wait until another request of the same guard has ended; sent back ``None``.

Vectors and refusals are handed to the call's ``sink`` as they become known, so nothing is lost if a
later step fails. Errors of ``nexusflow_integrations.errors`` are raised out of the generator.
``job.drive`` runs it on an event loop; the tests run it by hand, without socket or sleep.
"""

from __future__ import annotations

import logging
import re
from asyncio import AbstractEventLoop
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

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
    InvalidResponseError,
    NexusFlowError,
    NotFoundError,
)

if TYPE_CHECKING:
    from nexusflow_integrations._core.key_sources import AskedKey, KeySource
    from nexusflow_integrations._core.pace.terms import Terms
    from nexusflow_integrations._core.redis.address import RedisAddress

logger = logging.getLogger("nexusflow_integrations")

_VERSION = re.compile(r"/v[0-9]")
_CUTTING = ("split", "truncate")
"""What ``on_too_long`` says where texts are not sent as they are."""


@dataclass(slots=True)
class Send:
    """Be admitted with about ``tokens``, then send ``body`` within ``timeout`` seconds.

    ``batch`` is what the body holds.

    Whoever does it sets ``admitted`` after the admission queue: from then on it may be billed.
    """

    body: bytes
    batch: Batch
    tokens: int
    timeout: float
    urgent: bool
    admitted: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a ``Send``, with the monotonic seconds when it was sent and when it ended."""

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
    """Wait until a reservation of ``guard`` is settled."""

    guard: BudgetGuard


@dataclass(frozen=True, slots=True)
class Renew:
    """Get another key than ``refused``; sent back whether there is one, which is the call's now."""

    refused: ApiKey
    renew: Callable[[ApiKey | None], Awaitable[bool]]


Step = Send | Sleep | Follow | AwaitSettled | Renew
Steps = Generator[Step, Any, None]


class Sink(Protocol):
    """Where results go as they become known."""

    def rows(self, batch: Batch, vectors: Vectors) -> None:
        """Take the float32 (len(batch), d) ``vectors`` of ``batch``."""

    def refused(self, item: Item, error: APIStatusError) -> None:
        """Take the server's refusal of one text."""


@dataclass
class LearntSize:
    """The size of a client's vectors where none was asked for: the first answer's.

    ``said`` is whether its user was told that texts are truncated.
    """

    dimensions: int | None = None
    said: bool = False


@dataclass(eq=False, kw_only=True)
class Call:
    """One call: what the client asks for, and, below, what the engine adds when it begins.

    ``until`` is the deadline in monotonic seconds. ``stopping`` is set when the call is going to
    fail: what is ``in_flight`` (tasks with a request out) may finish, nothing more is sent.
    ``shortened`` are the indices of texts that were too long.
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

    endpoint: EndpointState = field(init=False)
    sink: Sink = field(init=False)
    until: float = field(init=False, default=float("inf"))
    stopping: bool = field(init=False, default=False)
    in_flight: set[object] = field(init=False, default_factory=set)
    shortened: set[int] = field(init=False, default_factory=set)
    sender: Any = field(init=False, default=None)
    renew: Callable[[ApiKey | None], Awaitable[bool]] | None = field(init=False, default=None)
    proven: ApiKey | None = field(init=False, default=None)
    old_keys: list[ApiKey] = field(init=False, default_factory=list)

    @property
    def secrets(self) -> list[Secret]:
        """The key and the headers that were sent, which a server may repeat."""
        keys = [] if self.key is None else [self.key]
        return [*keys, *self.old_keys, *self.settings.default_headers.secrets()]

    @property
    def account(self) -> ApiKey | AskedKey:
        """What stands for the account, whatever its key is at the moment."""
        if self.keys is not None:
            return self.keys.account
        assert self.key is not None
        return self.key


class Stopped(Exception):  # noqa: N818 - it never leaves the core
    """The call is failing elsewhere; this batch is given up without a verdict."""


def exchange(
    batch: Batch, call: Call, ledger: Ledger | None = None, sink: Sink | None = None
) -> Steps:
    """Embed ``batch``: send it, again if need be, in pieces if need be.

    Counted in ``ledger``, or else in the call's own; results go to ``sink``, or else to the call's.

    Raises:
        NexusFlowError: The call cannot succeed: a terminal error, or retries, time or budget ran
            out. What finished before is in the sink.
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
        ledger.refused -= 1
        yield from _shorter(batch[0], call, ledger, sink)
    else:
        sink.refused(batch[0], failure.error)


def _shortened(batch: Batch, call: Call, ledger: Ledger, sink: Sink) -> Generator[Step, Any, Batch]:
    """Return what is to be sent of ``batch`` as it is; texts that are split are done by then."""
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
    """Send less of ``item`` at once, which the server found too long, and the estimate did not."""
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
            "a text has more than the %s tokens that the model takes, and is truncated; usage says"
            " how many were",
            f"{call.settings.token_limit:,}",
        )
    return truncated(item, most)


def _in_pieces(item: Item, most: float, call: Call, ledger: Ledger, sink: Sink) -> Steps:
    """Embed a text in pieces of ``most`` tokens, and take their mean for its vector."""
    into = sink if isinstance(sink, Pieces) else Pieces()
    refused = ledger.refused
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
        ledger.refused = refused + 1
        sink.refused(item, into.error)


def _bisect(batch: Batch, call: Call, failure: Failure, ledger: Ledger, sink: Sink) -> Steps:
    """Send both halves, to part the texts at fault from the others."""
    left, right = halves(batch)
    logger.info("a batch of %d texts was refused (%s); splitting it", len(batch), failure.error)
    refused_before = ledger.refused
    yield from exchange(left, call, ledger, sink)
    certain = failure.kind is Kind.REFUSED and not TOO_LONG.search(str(failure.error))
    if certain and len(right) == 1 and ledger.refused == refused_before:
        # All others passed moderation, so the refusal was meant for this one: no request needed to
        # learn it. A length may have been that of the whole request.
        ledger.refused += 1
        sink.refused(right[0], failure.error)
        return
    yield from exchange(right, call, ledger, sink)


def _send_until_judged(
    batch: Batch, call: Call, ledger: Ledger, sink: Sink
) -> Generator[Step, Any, Failure | None]:
    """Send ``batch`` until it is answered for good.

    Returns ``None`` once its vectors are in the sink, else the failure that calls for another
    batch. Raises what ends the call.
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
                        probing.end(recovered=None)  # or the pieces would wait for their own probe
                    for piece in halves(batch):
                        yield from exchange(piece, call, ledger, sink)
                    return None
            encoding = "float" if endpoint.base64_refused else settings.encoding_format
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
                timeout = min(settings.timeout, _remaining(call))
                step = Send(body, batch, tokens, timeout, call.urgent)
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
                logger.info("the server refuses base64; asking for floats from now on")
                endpoint.base64_refused = True
                continue
            if kind in (Kind.REFUSED, Kind.TOO_LARGE) or (
                kind is Kind.BATCH_LIMIT and len(batch) > 1
            ):
                if len(batch) == 1:
                    ledger.refused += 1
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
    """Whether there is another key than the one that got a 401.

    A key that was refused before it had worked once is not replaced: the next one would be, too.
    """
    if call.key is not refused:
        return True  # meanwhile another batch has got one
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
    """Wait until another try makes sense; return the retries so far, and the outage it probes."""
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
                raise error  # which says what was in flight
            raise _too_late(call, f"the next try was due in {delay:.1f} s", cause=error)
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
                retries -= 1  # the prober left without having tried
            continue
        if not endpoint.retry_budget.take():
            if not endpoint.alive:
                raise error
            yield Sleep(delay)  # others get through: wait for their answers to refill the budget
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
    """Reserve the most that ``batch`` can cost; 0 if at most a part of it fits."""
    most = sum(token_bound(len(item.encoded)) for item in batch)
    while not guard.reserve(most):
        if guard.pending:
            yield AwaitSettled(guard)
        elif len(batch) > 1:
            return 0
        else:
            raise BudgetExceededError(
                f"the budget of {guard.limit:,} tokens has {guard.limit - guard.spent:,} left, and"
                f" the next text may cost up to {most:,}; it was not sent"
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
        billed = most  # nobody knows whether it was billed, and a budget must hold
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
                f"{error}; base_url has no version in its path: is it {call.settings.base_url}/v1?",
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
