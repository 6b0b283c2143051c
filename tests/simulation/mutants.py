"""The engine with one line taken out, which the simulation must notice."""

from __future__ import annotations
import __future__

import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from nexusflow_integrations._core import usage
from nexusflow_integrations._core.call import coalescing, engine, job, sources
from nexusflow_integrations._core.pace import admission, pacing, window
from nexusflow_integrations._core.request import exchange, wire

from .seams import MODULES


@dataclass(frozen=True)
class Mutant:
    """``owner.name`` with ``old`` in its source replaced by ``new``.

    Attributes:
        what: What is taken out, for people.
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
        """Have it in place of the original."""
        original: FunctionType = vars(self.owner)[self.name]
        source = textwrap.dedent(inspect.getsource(original))
        assert source.count(self.old) == 1, f"{self.what}: the source has changed"
        flags = __future__.annotations.compiler_flag
        code = compile(source.replace(self.old, self.new), "mutant", "exec", flags, True)
        made: dict[str, Any] = {}
        exec(code, original.__globals__, made)
        places = [self.owner]
        if inspect.ismodule(self.owner):  # others have imported it by its name
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
        "the admission queue is not told that a request has ended",
        job,
        "admit_and_send",
        "call.in_flight.discard(task)\n        endpoint.admission.leave()",
        "call.in_flight.discard(task)",
    ),
    Mutant(
        "the admission queue is not told that a call was stopped as its turn came",
        job,
        "_enter",
        "endpoint.admission.leave()\n            raise",
        "raise",
    ),
    Mutant(
        "the admission queue is not told that a call was cancelled as its turn came",
        admission.AdmissionQueue,
        "enter",
        "self.leave()",
    ),
    Mutant(
        "what an answer cost is not settled with the budget",
        exchange,
        "_send_until_judged",
        "_settle(call, verdict, most)",
    ),
    Mutant(
        "what a cancelled request may have cost is not settled with the budget",
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
        "an answer that never came counts as free",
        exchange,
        "_settle",
        "billed = most",
        "billed = 0",
    ),
    Mutant(
        "a call does not say that its texts are no longer under way",
        job.Job,
        "_run_distinct",
        "self._coalescer.leave(mine, self._gathered)",
    ),
    Mutant(
        "whoever waits for a call's text is not woken at its end",
        coalescing.Coalescer,
        "leave",
        "gathered.wake_all()",
    ),
    Mutant(
        "nobody looks whether another call embeds a text",
        coalescing.Coalescer,
        "join",
        "if not self._coalescer:",
        "if True:",
    ),
    Mutant(
        "the deadline bounds only requests and waits for a retry",
        job.Job,
        "run",
        'if deadline == float("inf"):',
        "if True:",
    ),
    Mutant(
        "a retry does not wait as long as the server said",
        exchange,
        "_before_retry",
        "delay = retry.after_hint(hint)",
        "delay = 0.1",
    ),
    Mutant(
        "a prober that gives up does not say so",
        exchange,
        "_before_retry",
        "outage.end(recovered=None)",
    ),
    Mutant(
        "a probe that failed does not say so",
        exchange,
        "_send_until_judged",
        "probing.end(recovered=False)",
    ),
    Mutant(
        "vectors are taken in the order in which they come",
        wire,
        "_place",
        "placed[index] = embedding",
        "placed[sum(seen) - 1] = embedding",
    ),
    Mutant(
        "the window lets everybody through",
        window.Window,
        "allows",
        "in_flight < int(self.size)",
        "True",
    ),
    Mutant(
        "given limits are not waited for", pacing.GivenLimits, "wait", "bucket.wait(now)", "0.0"
    ),
    Mutant("the budget reserves nothing", usage.BudgetGuard, "reserve", "self.reserved += most"),
    Mutant(
        "an error does not hold what came before it",
        engine.Engine,
        "embed",
        "failure.finished = gathered.finished()",
    ),
    Mutant(
        "claims on what was not sent are not given back",
        sources.CachedSource,
        "close",
        "self._cache.release(keys, self._call)",
    ),
    Mutant(
        "claims on what came without a vector are not given back",
        sources.CachedSource,
        "keep",
        "self._cache.release(unpaid, self._call)",
    ),
    Mutant(
        "texts that others pay for are sent",
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
        "a request that was cancelled is not counted",
        exchange,
        "_send_until_judged",
        "ledger.sent(retry=attempts > 0)",
    ),
)
