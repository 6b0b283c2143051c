"""Mutants: the engine with one line changed, which the simulation must notice."""

from __future__ import annotations
import __future__

import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from nexusflow_integrations import client
from nexusflow_integrations._core import usage
from nexusflow_integrations._core.call import coalescing, direct, engine, job, sources
from nexusflow_integrations._core.pace import admission, pacing, window
from nexusflow_integrations._core.request import exchange, wire

from .seams import MODULES


@dataclass(frozen=True)
class Mutant:
    """``owner.name`` with ``old`` in its source replaced by ``new``.

    Attributes:
        what: A description.
        owner: The module or class.
        name: The function in it.
    """

    what: str
    owner: Any
    name: str
    old: str
    new: str = "pass"

    @contextmanager
    def living(self) -> Iterator[None]:
        """Replace the original by the mutant."""
        original: FunctionType = vars(self.owner)[self.name]
        source = textwrap.dedent(inspect.getsource(original))
        assert source.count(self.old) == 1, f"{self.what}: the source has changed"
        flags = __future__.annotations.compiler_flag
        file = original.__code__.co_filename  # where threads pause between lines
        code = compile(source.replace(self.old, self.new), file, "exec", flags, True)
        made: dict[str, Any] = {}
        exec(code, original.__globals__, made)
        places = [self.owner]
        if inspect.ismodule(self.owner):  # other modules have imported the function
            places = [m for m in MODULES if vars(m).get(self.name) is original]
        for place in places:
            setattr(place, self.name, made[self.name])
        try:
            yield
        finally:
            for place in places:
                setattr(place, self.name, original)


MUTANTS = (
    Mutant(
        "the admission queue is not informed that a request has ended",
        job,
        "admit_and_send",
        "call.in_flight.discard(task)\n        endpoint.admission.leave()",
        "call.in_flight.discard(task)",
    ),
    Mutant(
        "the admission queue is not informed that a call was stopped when its turn came",
        job,
        "_enter",
        "endpoint.admission.leave()\n            raise",
        "raise",
    ),
    Mutant(
        "the admission queue is not informed that a call was cancelled when its turn came",
        admission.AdmissionQueue,
        "enter",
        "self.leave()",
    ),
    Mutant(
        "the cost of a response is not settled with the budget",
        exchange,
        "_send_until_judged",
        "_settle(call, verdict, most)",
    ),
    Mutant(
        "the possible cost of a cancelled request is not settled with the budget",
        exchange,
        "_send_until_judged",
        "call.guard.settle(most, most if admitted else 0)",
    ),
    Mutant(
        "a cancelled request counts as free",
        exchange,
        "_send_until_judged",
        "most if admitted else 0",
        "0",
    ),
    Mutant(
        "a request without a response counts as free",
        exchange,
        "_settle",
        "billed = most",
        "billed = 0",
    ),
    Mutant(
        "calls that wait for a call's text are not woken at its end",
        coalescing.Coalescer,
        "leave",
        "results.wake_all()",
    ),
    Mutant(
        "a call does not check whether another call is embedding a text",
        coalescing.Coalescer,
        "join",
        "if not self._carriers:",
        "if True:",
    ),
    Mutant(
        "the deadline limits only requests and waits for retries",
        job.Job,
        "run",
        'if deadline == float("inf"):',
        "if True:",
    ),
    Mutant(
        "a retry waits for less than the server asked",
        exchange,
        "_before_retry",
        "delay = retry.after_hint(hint)",
        "delay = 0.1",
    ),
    Mutant(
        "a probe that is given up is not reported",
        exchange,
        "_before_retry",
        "outage.end(recovered=None)",
    ),
    Mutant(
        "a failed probe is not reported",
        exchange,
        "_send_until_judged",
        "probing.end(recovered=False)",
    ),
    Mutant(
        "vectors are taken in the order of the response",
        wire,
        "_place",
        "placed[index] = embedding",
        "placed[sum(seen) - 1] = embedding",
    ),
    Mutant(
        "the window does not limit requests",
        window.Window,
        "allows",
        "in_flight < int(self.size)",
        "True",
    ),
    Mutant("given limits are ignored", pacing.GivenLimits, "wait", "bucket.wait(now)", "0.0"),
    Mutant("the budget reserves nothing", usage.BudgetGuard, "reserve", "self.reserved += most"),
    Mutant(
        "an error does not hold the vectors that came before it",
        engine.Engine,
        "embed",
        "failure.finished = results.finished()",
    ),
    Mutant(
        "claims on texts that were not sent are not released",
        sources.CachedSource,
        "close",
        "self._cache.release(keys, self._call)",
    ),
    Mutant(
        "claims on texts without a vector are not released",
        sources.CachedSource,
        "keep",
        "self._cache.release(unpaid, self._call)",
    ),
    Mutant(
        "texts that other processes have in flight are sent",
        sources.CachedSource,
        "_claim",
        "elif key in mine:",
        "elif True:",
    ),
    Mutant(
        "texts that others may have taken over are sent",
        sources.CachedSource,
        "confirm",
        "if not lost:",
        "if True:",
    ),
    Mutant(
        "a call with a deadline waits for its cache as long as any",
        sources.CachedSource,
        "_patience",
        "self._time_left() / 4",
        "10.0",
    ),
    Mutant(
        "a cancelled request is not counted",
        exchange,
        "_send_until_judged",
        "ledger.sent(retry=attempts > 0)",
    ),
    Mutant(
        "a thread's request stays in the admission queue after it has ended",
        admission.AdmissionQueue,
        "exit",
        "self.threads.discard(request)",
    ),
    Mutant(
        "the event loop does not count the requests of threads",
        admission.AdmissionQueue,
        "_admit",
        "self.in_flight + max(self._lent, len(self.threads))",
        "self.in_flight",
    ),
    Mutant(
        "a thread does not release its texts at its end",
        direct.DirectCall,
        "_release_texts",
        "self._coalescer.exit(self._texts, self._results)",
    ),
    Mutant(
        "calls that wait for a thread's text are not woken at its end",
        direct.DirectCall,
        "_hand_over",
        "self._later(self._results.wake_all)",
    ),
    Mutant(
        "a thread does not look for texts that the event loop is sending",
        coalescing.Coalescer,
        "enter",
        "text in self._carriers",
        "False",
    ),
    Mutant(
        "the event loop does not look for texts that threads are sending",
        coalescing.Coalescer,
        "join",
        "return self._without_those_of_threads(mine, others, results)",
        "return mine, others",
    ),
    Mutant(
        "the event loop repeats a thread's request instead of using its reply",
        direct.DirectCall,
        "_take",
        "self._call.sent = (step, reply)",
    ),
    Mutant(
        "what a thread counted is counted again by the event loop",
        client.NexusFlow,
        "_embed_here",
        "call.ledger.reset()",
    ),
)
