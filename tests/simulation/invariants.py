"""Check the invariants after every run: results, deadlines, and that nothing is left behind."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from nexusflow_integrations import errors
from nexusflow_integrations.errors import NexusFlowError

from . import payments
from .callers import Outcome
from .server import POISON, Sent, vector_of
from .world import Broken

if TYPE_CHECKING:
    from .run import Run

SLACK = 0.05
"""Seconds by which a deadline may be missed."""
ROUNDING = 1e-9
"""Seconds of error in the difference of two times of the simulated clock."""


def check(run: Run) -> None:
    """Check all invariants.

    Raises:
        Broken: An invariant is violated.
    """
    for outcome in run.callers.outcomes:
        if outcome.ended is not None:
            _right_vectors(run, outcome)
            _complete(outcome)
            _kept(run, outcome)
            _typed_error(run, outcome)
            _deadline(run, outcome)
            _time_for_the_request(run, outcome)
    _nothing_left(run)
    _concurrency(run)
    _hints(run)
    _nothing_after_the_end(run)
    payments.check(run)


def check_closed(run: Run) -> None:
    """Check what must hold once all clients are closed.

    Raises:
        Broken: An invariant is violated.
    """
    payments.check_given_back(run)


def _right_vectors(run: Run, outcome: Outcome) -> None:
    texts = outcome.visit.texts
    size = outcome.client.real.dimensions or run.server.script.size
    for index, row in outcome.rows.items():
        if not np.array_equal(row, vector_of(texts[index], size)):
            raise Broken(f"right vectors: text {index} of {len(texts)} got the wrong one")
        if POISON in texts[index]:
            raise Broken(f"right vectors: text {index} has one, but the server refused it")
    for index in outcome.refused:
        if POISON not in texts[index]:
            raise Broken(f"right vectors: text {index} was refused, but not by the server")


def _complete(outcome: Outcome) -> None:
    count = len(outcome.visit.texts)
    if outcome.is_complete and outcome.rows.keys() | outcome.refused.keys() != set(range(count)):
        raise Broken("every text: a call succeeded without a result for each text")
    if outcome.is_complete and outcome.visit.reports and outcome.progress != count:
        raise Broken(f"every text: progress reported {outcome.progress} of {count} texts")


def _kept(run: Run, outcome: Outcome) -> None:
    """Check that vectors that arrived before a failure are in the error."""
    if not isinstance(outcome.error, NexusFlowError):
        return
    have = {outcome.visit.texts[index] for index in outcome.rows}
    for sent in run.server.sent:
        if sent.arrived and sent.call in outcome.calls and not have.issuperset(sent.texts):
            raise Broken(f"finished: the error lacks the vectors of request {sent.number}")


CAUSES: dict[type[BaseException], tuple[str, ...]] = {
    errors.RateLimitError: ("quota", "throttled"),
    errors.InternalServerError: ("overloaded",),
    errors.APIConnectionError: ("unreachable", "reset"),
    errors.InvalidResponseError: ("short", "doubled", "broken"),
    errors.AuthenticationError: ("forbidden",),
    errors.PermissionDeniedError: ("unpaid",),
    errors.BadRequestError: ("refused",),
    errors.RefusedTextsError: ("refused",),
}
"""What must have happened before a call may end with each error."""


def _typed_error(run: Run, outcome: Outcome) -> None:
    error, visit, settings = outcome.error, outcome.visit, outcome.client.real.settings
    if error is None:
        return
    if isinstance(error, asyncio.CancelledError):
        fits = visit.cancel_after is not None and not visit.is_in_thread
    elif isinstance(error, KeyboardInterrupt):
        fits = visit.cancel_after is not None and visit.is_in_thread
    elif isinstance(error, errors.APITimeoutError):
        # A thread may have been paused between reading the clock and beginning to connect.
        paused = 0.0 if outcome.thread is None else outcome.thread.paused
        fits = settings.deadline is not None or any(
            sent.closed_at - sent.began_at >= settings.timeout - paused - ROUNDING
            for sent in run.server.sent
        )
    elif isinstance(error, errors.BudgetExceededError):
        fits = run.options[outcome.client.number].get("budget") is not None
    else:
        fates = CAUSES.get(type(error), ())
        fits = any(sent.fate in fates for sent in run.server.sent)
    if not fits:
        raise Broken(f"a typed error: {type(error).__name__}: {error}")


def _deadline(run: Run, outcome: Outcome) -> None:
    deadline, process = outcome.client.real.settings.deadline, outcome.client.process
    if deadline is None or outcome.ended is None or "stream" in outcome.visit.kind:
        return
    took = outcome.ended - outcome.began
    if outcome.thread is not None:
        took -= outcome.thread.paused
    if took - process.stopped_for(outcome.began, outcome.ended) > deadline + SLACK:
        raise Broken(f"the deadline: {took:.2f} s instead of {deadline} s")


def _time_for_the_request(run: Run, outcome: Outcome) -> None:
    """Check that a call which only the store delays has time left to send a request.

    The check applies if no other process calls meanwhile, no process has died or lost its store
    with claims that it could not release, and the process has received only good responses.
    """
    process, began, ended = outcome.client.process, outcome.began, outcome.ended
    options = run.scenario.clients[outcome.client.number]
    if (
        not isinstance(outcome.error, errors.APITimeoutError)
        or "stream" in outcome.visit.kind
        or options.keys() & {"pacer", "requests_per_minute", "budget", "shared_budget"}
        or process.stopped_for(began, ended)
        or any(incident.what == "die" for incident in run.scenario.incidents)
        or any(other.lost_store_at < ended for other in run.processes)
        or any(one.process is process and one.fate != "right" for one in run.server.sent)
    ):
        return
    alone = all(
        other is outcome or other.began > ended or (other.ended or ended) < began
        for other in run.callers.outcomes
    )
    if alone and not any(one.call in outcome.calls for one in run.server.sent):
        raise Broken("the deadline: a call waited for its store until there was no time left")


def _nothing_left(run: Run) -> None:
    for process in run.living:
        for name, loop in (("caller", process.loop), ("background", process.background.loop)):
            if tasks := loop.tasks:
                raise Broken(f"nothing is left: {len(tasks)} tasks on the {name}'s loop: {tasks}")
        if not all(thread.is_idle for thread in process.threads):
            raise Broken("nothing is left: work in a thread")
        if not all(thread.has_ended for thread in process.program_threads):
            raise Broken("nothing is left: a thread of the program")
        for what in process.engine.leftovers():
            raise Broken(f"nothing is left: {what}")
    for process, complaint in run.world.complaints:
        if process.is_alive:
            raise Broken(f"nothing is left: an unhandled error: {complaint}")
    for one in run.clients:
        guard = one.real._guard
        if one.process.is_alive and guard is not None and guard.reserved:
            raise Broken(f"nothing is left: {guard.reserved} tokens of a budget are reserved")
    if claims := run.live_claims():
        raise Broken(f"nothing is left: {claims} claims in the store")


def _concurrency(run: Run) -> None:
    """Check that no process has more requests in flight than its largest ``max_concurrency``."""
    for process in run.processes:
        widest = max(options["max_concurrency"] for options in run.scenario.clients)
        turns = [
            turn
            for sent in run.server.sent
            if sent.process is process
            for turn in ((sent.sent_at, 1), (sent.closed_at, -1))
        ]
        in_flight = 0
        for _, step in sorted(turns):
            in_flight += step
            if in_flight > widest:
                raise Broken(f"concurrency: {in_flight} requests were in flight")


def _hints(run: Run) -> None:
    """Check that a batch is not retried before the time that the server asked for."""
    batches: dict[tuple[int, str], list[Sent]] = {}
    for sent in run.server.sent:
        batches.setdefault((id(sent.call), "\n".join(sent.texts)), []).append(sent)
    for tries in batches.values():
        for former, later in pairwise(tries):
            hint = former.hint if former.answered else None
            if hint is not None and later.sent_at < former.closed_at + hint - 1e-6:
                raise Broken(
                    f"hints: request {later.number} came {later.sent_at - former.closed_at:.2f} s"
                    f" after one for which the server asked to wait {hint} s"
                )


def _nothing_after_the_end(run: Run) -> None:
    for sent in run.server.sent:
        ended = sent.process.engine.ended.get(sent.call, float("inf"))
        if max(sent.sent_at, sent.closed_at) > ended and sent.process.is_alive:
            raise Broken(f"nothing continues: request {sent.number} outlived its call")
