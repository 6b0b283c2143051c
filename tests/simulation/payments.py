"""Check payments: usage is what was billed, budgets hold, and no text is paid for twice."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from nexusflow_integrations._core.cache.keys import Keyer
from nexusflow_integrations._core.request.tokens import estimate_tokens

from .callers import Client
from .server import Sent
from .shared import ScriptedBudget
from .world import Broken

if TYPE_CHECKING:
    from .run import Run
    from .threads import ProgramThread


def check(run: Run) -> None:
    """Check all invariants.

    Raises:
        Broken: An invariant is violated.
    """
    for client in run.clients:
        sent = [one for one in run.server.sent if _is_of(one, client)]
        _budget(run, client, sent)
        if client.process.is_alive:
            _usage(client, sent)
    for number, budget in run.budgets.items():
        _shared_budget(run, number, budget)
    _quota(run)
    _in_flight_once(run)
    _paid_once(run)
    _repaid(run)


def _is_of(sent: Sent, client: Client) -> bool:
    return sent.process is client.process and sent.call.settings is client.real.settings


def _budget(run: Run, client: Client, sent: list[Sent]) -> None:
    limit = run.scenario.clients[client.number].get("budget")
    if limit is None:
        return
    billed = sum(one.billed for one in sent)
    if client.spent_before + billed > limit:
        spent = client.spent_before + billed
        raise Broken(f"the budget: {spent} of {limit} tokens were billed")
    guard = client.real._guard
    if client.process.is_alive and guard is not None and guard.spent < client.spent_before + billed:
        raise Broken(f"the budget: {guard.spent - client.spent_before} of {billed} tokens count")


def _shared_budget(run: Run, number: int, budget: ScriptedBudget) -> None:
    billed = sum(
        one.billed
        for client in run.clients
        if client.number == number
        for one in run.server.sent
        if _is_of(one, client)
    )
    if not billed <= budget.grants.granted <= budget.tokens:
        granted = budget.grants.granted
        raise Broken(f"the budget: {billed} billed, {granted} granted of {budget.tokens} tokens")


def check_given_back(run: Run) -> None:
    """Check that no closed client keeps a part of a shared budget.

    Raises:
        Broken: A closed client keeps a part.
    """
    if len(run.living) < len(run.processes):
        return
    for budget in run.budgets.values():
        if not budget.failures and not budget.grants.at_rest:
            raise Broken("the budget: a part of it was not returned")


def _usage(client: Client, sent: list[Sent]) -> None:
    usage, before = client.real.usage, client.given
    requests = usage.requests - before.requests
    # A thread counts its request just before it sends it, and may be interrupted in between.
    threads = [thread for thread in client.process.program_threads if thread.interrupted]
    unsent = sum(_counted_unsent(thread, client) for thread in threads)
    if not 0 <= requests - len(sent) <= unsent:
        raise Broken(f"usage: {requests} requests are counted, and {len(sent)} were sent")
    arrived = [one for one in sent if one.arrived]
    most = sum(map(_tokens, arrived))
    # It may also be interrupted between reading a response and counting its tokens.
    perhaps = [one for one in arrived if any(one is thread.sent for thread in threads)]
    least = most - sum(map(_tokens, perhaps))
    tokens = usage.tokens - before.tokens
    if not least <= tokens <= most:
        raise Broken(f"usage: {tokens} tokens are counted, and {most} were billed")


def _counted_unsent(thread: ProgramThread, client: Client) -> bool:
    """Return whether the interrupted ``thread`` may have counted a request that it did not send."""
    if thread.call is None or thread.call.settings is not client.real.settings:
        return False
    return thread.sent is None


def _tokens(sent: Sent) -> int:
    if sent.reported is not None:
        return sent.reported
    return sum(map(estimate_tokens, sent.texts))


LATE = 0.3
"""Seconds of a limit that a process may catch up."""


def _quota(run: Run) -> None:
    """Check that limits hold for each process, or for all together if they share a store."""
    minute = run.clients[0].real.settings.requests_per_minute
    if minute is None:
        return
    switches = 0  # between shared limits and pacing alone; each may cost a request
    if run.limits is not None:
        switches = 2 * run.limits.failures
        is_shared = not run.limits.failures
    else:
        is_shared = all(options["cache"] for options in run.options) and not any(
            process.lost_store_at < float("inf") for process in run.processes
        )
    for process in run.processes[:1] if is_shared else run.processes:
        interval = 60 / minute
        due = 0.0
        for sent in run.server.sent:
            if is_shared or sent.process is process:
                due = max(due, sent.sent_at) + interval
                if due - sent.sent_at > LATE + (3 + switches) * interval:
                    raise Broken(
                        f"the quota: request {sent.number} came {due - sent.sent_at:.2f} s early"
                    )


def _scope(sent: Sent) -> tuple[object, ...]:
    return sent.call.settings.dimensions, sent.call.cache


def _in_flight_once(run: Run) -> None:
    """Check that no process has a text in flight twice."""
    for sent, other in combinations(run.server.sent, 2):
        if (
            sent.process is other.process
            and _scope(sent) == _scope(other)
            and sent.sent_at < other.closed_at
            and other.sent_at < sent.closed_at
            and (both := set(sent.texts) & set(other.texts))
        ):
            raise Broken(f"paid once: {sorted(both)} are in requests {sent.number}, {other.number}")


def _paid_once(run: Run) -> None:
    """With a cache, check that no text is paid for twice, unless its vector was not stored."""
    paid: dict[tuple[object, ...], list[Sent]] = {}
    for sent in sorted(run.server.sent, key=lambda one: one.sent_at):
        if not sent.billed:
            continue
        for text in sent.texts:
            for former in paid.setdefault((text, *_scope(sent)), []):
                if _is_kept(former, text, run) and _knows(sent) and sent.call.cache:
                    raise Broken(
                        f"paid once: {text!r} was paid for in request {former.number} and again"
                        f" in {sent.number}"
                    )
            paid[(text, *_scope(sent))].append(sent)


COMMIT = 1.0
"""Seconds within which vectors must be committed for this check to apply."""


def _is_kept(sent: Sent, text: str, run: Run) -> bool:
    """Return whether the vector of ``text`` was certainly stored before its claim expired.

    A split batch is stored when all of it has arrived, without a suspension before that.
    """
    process = sent.process
    stops = [since for since, to in process.stops if to > sent.sent_at]
    stopped_at = min(stops, default=float("inf"))
    return (
        sent.arrived
        and _knows(sent)
        and sent.closed_at + COMMIT < stopped_at
        and (stopped_at == float("inf") or _kept_at(sent, text) < stopped_at)
        and not any(
            begin < sent.closed_at + COMMIT and sent.sent_at < end
            for begin, end in run.store_script.locks
        )
    )


def _kept_at(sent: Sent, text: str) -> float:
    settings = sent.call.settings
    key = Keyer(base_url=settings.base_url, model=settings.model, dimensions=settings.dimensions)(
        text
    )
    return sent.process.kept_at.get(key, float("inf"))


def _knows(sent: Sent) -> bool:
    """Return whether the store answered the sender before the sender stopped waiting."""
    process = sent.process
    return process.lost_store_at == float("inf") and process.hurried_at > sent.sent_at


def _repaid(run: Run) -> None:
    """Check that no report says a text may be paid for twice if no claim can have expired."""
    repaid = sum(one.real.usage.repaid - one.given.repaid for one in run.clients)
    if repaid and not any(
        not process.is_alive
        or process.lost_store_at < float("inf")
        or any(to - since > RUNS_OUT for since, to in process.stops)
        for process in run.processes
    ):
        raise Broken(f"usage: {repaid} texts are reported as paid for twice, but none can be")


RUNS_OUT = 5.0
"""Seconds without a renewal after which a claim may have expired. A claim lasts ten seconds."""
