"""One call in progress: workers take batches from a source and drive their exchanges."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from nexusflow_integrations._core.call.caller import Caller
from nexusflow_integrations._core.call.coalescing import Coalescer
from nexusflow_integrations._core.call.results import CallResults
from nexusflow_integrations._core.call.sources import ClaimsLost, Source, Texts
from nexusflow_integrations._core.request.exchange import (
    AwaitSettled,
    Call,
    Follow,
    Renew,
    Reply,
    Send,
    Sleep,
    Step,
    Steps,
    Stopped,
    exchange,
)
from nexusflow_integrations._core.request.transport import Sender
from nexusflow_integrations._core.request.wire import Answer, TransportFault
from nexusflow_integrations._core.secret import without_frames
from nexusflow_integrations._core.usage import Ledger
from nexusflow_integrations.errors import APITimeoutError, NexusFlowError

TURN = 0.25
"""Seconds for which an admission is valid; a request that is not sent by then queues again."""
MOST_TURNS = 3
"""Maximum number of times that a request queues, so that a slow store cannot delay it for ever."""
DRAIN = 5.0
"""Seconds in which requests in flight may finish after another call has failed."""

STOPPED = DRAIN + 5.0
"""Seconds within which a stopped call has ended, with its results written to the store."""

REPORTING = 0.01
"""Seconds that a request has after the deadline to report its timeout.

The error of the request says what was in flight; that of the deadline does not.
"""

PARTS = 10
"""The number of short waits into which a wait of ``DRAIN`` or ``STOPPED`` seconds is divided.

If the process is suspended, only one of them ends, so responses that arrived are still read.
"""


class StoppedElsewhere(NexusFlowError):  # noqa: N818 - users never see it
    """A call was stopped because another call failed; the user gets that call's error."""


class Stop:
    """Stops several calls together: nothing more is sent, and requests in flight are kept.

    A ``Stop`` may be created in any thread, but is used only on the event loop.
    """

    def __init__(self) -> None:
        self._calls: dict[Job, None] = {}  # in order
        self._requested = False

    def request(self) -> None:
        """Stop all calls that have joined, and those that join later."""
        self._requested = True
        for call in list(self._calls):
            call.stop()

    def join(self, call: Job) -> None:
        self._calls[call] = None
        if self._requested:
            call.stop()

    def leave(self, call: Job) -> None:
        self._calls.pop(call, None)


SendStep = Callable[[Source, Send], Coroutine[Any, Any, Reply]]


async def admit_and_send(call: Call, sender: Sender, source: Source, step: Send) -> Reply:
    endpoint = call.endpoint
    sent, call.sent = call.sent, None
    if sent is not None:
        if sent[0].body == step.body:
            step.admitted = True
            return sent[1]
        call.ledger.sent(retry=False)  # the batch was split after the request
    await _enter(call, source, step)
    step.admitted = True
    sent_at = endpoint.clock()
    task = asyncio.current_task()
    call.in_flight.add(task)
    try:
        outcome: Answer | TransportFault = await sender.send(step.body, step.timeout)
    finally:
        call.in_flight.discard(task)
        endpoint.admission.leave()
        del task  # break a cycle: a cancelled task holds its error, whose frames hold the task
    return Reply(outcome, sent_at, endpoint.clock())


async def _enter(call: Call, source: Source, step: Send) -> None:
    """Wait in the admission queue, then check that the batch should still be sent.

    If the check takes so long that the admission expires, queue again. Otherwise many delayed
    requests could be sent at once.
    """
    endpoint = call.endpoint
    sure_until = float("-inf")
    for turns in range(1, MOST_TURNS + 1):
        await endpoint.admission.enter(step.tokens, urgent=step.urgent, again=turns > 1)
        turn = endpoint.clock()
        try:
            if turn >= sure_until and not call.stopping:
                sure_until = turn + await source.confirm(step.batch)
            if call.stopping:
                raise Stopped
        except BaseException:
            endpoint.admission.leave()
            raise
        if endpoint.clock() - turn <= TURN or turns == MOST_TURNS:
            return
        endpoint.admission.leave()


async def drive(steps: Steps, send: Callable[[Send], Coroutine[Any, Any, Reply]]) -> None:
    """Carry out the steps that ``steps`` yields until it ends."""
    reply: Reply | bool | None = None
    try:
        while True:
            step: Step = steps.send(reply)
            reply = None
            if isinstance(step, Send):
                reply = await send(step)
            elif isinstance(step, Sleep):
                await asyncio.sleep(step.seconds)
            elif isinstance(step, Renew):
                reply = await step.renew(step.refused)
            elif isinstance(step, Follow):
                await _signalled(step.outage.listen, already=step.outage.over)
            elif isinstance(step, AwaitSettled):
                await _signalled(step.guard.listen)
    except StopIteration:
        return
    finally:
        steps.close()


async def _signalled(
    listen: Callable[[Callable[[], None]], None], *, already: bool = False
) -> None:
    if already:
        return
    signal = asyncio.Event()
    listen(signal.set)
    await signal.wait()


class Job:
    """One call in progress: a few workers take batches from one source.

    ``is_stoppable`` says whether ``stop`` may be called from outside.
    """

    def __init__(
        self,
        call: Call,
        results: CallResults,
        send: SendStep,
        *,
        coalescer: Coalescer,
        source: Callable[[Texts], Source],
        caller: Caller | None = None,
        is_stoppable: bool = False,
    ) -> None:
        self._call = call
        self._results = results
        self._send = send
        self._coalescer = coalescer
        self._source = source
        self._caller = caller if caller is not None and caller.hears_of_batches else None
        self._is_stoppable = is_stoppable
        self._tasks: Sequence[asyncio.Task[None]] = ()
        self._is_adding_tasks = False
        # A future that is done when another call has embedded a text for this call.
        self._other: asyncio.Future[None] | None = None
        self._drained: asyncio.TimerHandle | None = None
        self._failure: NexusFlowError | None = None

    async def run(self, texts: Sequence[str]) -> None:
        deadline = self._call.until - self._call.endpoint.clock()
        work = self._run(texts)
        if deadline == float("inf"):
            await work
            return
        try:
            # If the deadline has passed, the call may still use a reply that came before it.
            await asyncio.wait_for(work, max(0.0, deadline) + REPORTING)
        except asyncio.TimeoutError as error:
            if isinstance(error, NexusFlowError):
                raise
            raise APITimeoutError(
                f"the deadline of {self._call.settings.deadline:g} s has passed"
            ) from None

    async def _run(self, texts: Sequence[str]) -> None:
        wanted = list(enumerate(texts))
        if unsent := self._results.unsent:
            wanted = [item for item in wanted if item[0] not in unsent]
        copies: dict[int, int] = {}
        if len(set(texts)) < len(texts):
            first: dict[str, int] = {}
            for index, text in wanted:
                original = first.setdefault(text, index)
                if original != index:
                    copies[index] = original
            wanted = [(index, text) for text, index in first.items()]
            self._call.ledger.repeated += len(copies)
            self._results.duplicates = Counter(copies.values())
        try:
            await self._run_distinct(wanted)
        finally:
            for index, original in copies.items():
                self._results.repeat(index, original)
            self._results.report()

    async def _run_distinct(self, wanted: Texts) -> None:
        while wanted:
            if self._call.stopping:
                raise Stopped
            mine, others = self._coalescer.join(wanted, self._results)
            try:
                if mine:
                    await self._obtain(mine)
            finally:
                self._coalescer.leave(mine, self._results)
            wanted = [
                (index, text)
                for index, text, carrier, place in others
                if not await self._join(index, text, carrier, place)
            ]
            if wanted:
                await asyncio.sleep(0)  # if the other calls still hold these texts, let them end

    async def _join(self, index: int, text: str, carrier: CallResults, place: int) -> bool:
        """Take the row of a text that another call embeds; ``False`` if that call has no row."""
        # The other call may have ended while this call waited for another one of its texts.
        if not carrier.settled(place) and self._coalescer.is_embedding(text, carrier, place):
            self._other = carrier.settling(place)
            # Check again, now that this call would be woken: another thread may drive the other
            # call.
            if not carrier.settled(place) and self._coalescer.is_embedding(text, carrier, place):
                await self._other
            if self._call.stopping:
                raise Stopped
        if (row := carrier.lend(place)) is not None:
            self._results.row(index, row)
            self._call.ledger.cached += 1
        elif place in carrier.refusals:
            self._results.refuse(index, carrier.refusals[place])
        else:
            return False
        self._results.report()
        return True

    async def _obtain(self, texts: Texts) -> None:
        settings = self._call.settings
        source = self._source(texts)
        workers = min(settings.max_concurrency, -(-len(texts) // settings.batch_size))
        try:
            if workers <= 1 and not self._is_stoppable:
                await self._work(source)
            else:
                await self._work_together(source, workers)
        finally:
            source.close()

    async def _work_together(self, source: Source, most: int) -> None:
        """Work with up to ``most`` tasks; add one at each loop iteration without a response.

        With a slow server, all tasks soon run. A server that responds as fast as its responses are
        read gets only a few connections, which costs less and takes no longer.
        """
        ledger = self._call.ledger
        tasks = self._tasks = [asyncio.create_task(self._work(source))]
        self._is_adding_tasks = True
        try:
            while len(tasks) < most:
                answered = ledger.requests
                await asyncio.sleep(0)
                if self._call.stopping or any(task.done() for task in tasks):
                    break  # no batches are left, or the call has failed
                if ledger.requests == answered:
                    tasks.append(asyncio.create_task(self._work(source)))
            self._is_adding_tasks = False
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            if not all(task.done() for task in tasks):
                self.stop()
                await asyncio.wait(tasks)
        finally:
            if self._drained is not None:
                self._drained.cancel()
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            # Break cycles: tasks hold errors, whose frames hold the errors and this job.
            self._tasks = ()
            for result in results:
                if isinstance(result, NexusFlowError):
                    without_frames(result)
        if self._failure is not None:
            raise self._failure  # the worker may have been cancelled while it stored its rows
        for result in results:
            if isinstance(result, BaseException) and not isinstance(
                result, (Stopped, asyncio.CancelledError)
            ):
                raise result
        if self._call.stopping:
            raise Stopped

    def stop(self) -> None:
        """Send nothing more, keep what is already paid for, and cancel tasks that only wait.

        After ``DRAIN`` seconds, requests in flight are cancelled, too.
        """
        self._call.stopping = True
        if self._other is not None and not self._other.done():
            self._other.set_result(None)
        for task in self._tasks:
            if task not in self._call.in_flight:
                task.cancel()
        if self._drained is None and self._tasks:
            self._drain(PARTS)

    def _drain(self, parts: int) -> None:
        if parts:
            loop = asyncio.get_running_loop()
            self._drained = loop.call_later(DRAIN / PARTS, self._drain, parts - 1)
        else:
            for task in self._tasks:
                task.cancel()

    async def _work(self, source: Source) -> None:
        call, caller, results = self._call, self._caller, self._results
        kept: asyncio.Future[Any] | None = None
        while (batch := await source.next()) is not None:
            if call.stopping:
                raise Stopped
            ledger = call.ledger if caller is None else Ledger()
            number = None
            failed = True
            try:
                if caller is not None:
                    number = await caller.begin(batch)
                await drive(exchange(batch, call, ledger), partial(self._send, source))
                failed = False
            except ClaimsLost:
                pass  # the texts are handed out again, or are in the store
            except NexusFlowError as error:
                call.stopping = True  # stop before the admission queue admits the next request
                self._failure = self._failure or error
                raise
            finally:
                if number is not None:
                    call.ledger.add(ledger)
                kept = source.keep(batch) or kept
                if caller is not None and number is not None:
                    caller.end(number, batch, results, ledger, failed=failed)
            results.report()
            if self._is_adding_tasks:
                # The server is fast. Let the other tasks take the responses that have arrived, so
                # that the next requests are sent right after one another: to wake a server for each
                # takes longer than this.
                await asyncio.sleep(0)
        if kept is not None:
            await kept
        results.report()
