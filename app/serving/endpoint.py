"""One loaded version: its queue, its slots, its statistics. Launches only when its device says so."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from app.serving import batcher
from app.serving.errors import (
    Cancelled,
    DeadlineExceeded,
    DeviceGone,
    InferenceFailed,
    InvalidInput,
    ServingError,
    Stopping,
)
from app.serving.limits import ModelOptions
from app.serving.policy import Dispatch, Wait, decide
from app.serving.queue import Group, Queue
from app.serving.slots import FreeSlots
from app.serving.stats import Stats
from app.serving.ticket import Outcome, Reply, ShapeKey, State, Ticket
from engines.errors import DeviceLost
from engines.runtime.session import Session, Slot
from engines.tensor import DYNAMIC, TensorSpec

__all__ = ["Endpoint", "Host", "Offer"]

log = logging.getLogger(__name__)
_MAX_KNOWN_SHAPES = 4096
_ALONE = "alone"


class Host(Protocol):
    """What an endpoint needs of its device."""

    def now_ns(self) -> int: ...

    def wake(self, endpoint: Endpoint) -> None:
        """Something changed: look at the endpoint again, soon, on the loop."""
        ...

    def finished(self, endpoint: Endpoint, spent_ns: int) -> None:
        """A batch ended after `spent_ns` on the device."""
        ...

    def on_loop(self, call: Callable[[], None]) -> None:
        """Run `call` on the event loop; may be used from any thread."""
        ...


@dataclass(frozen=True, slots=True)
class Offer:
    """A batch that could be launched now. `group` None: a ticket alone, whose batch has failed."""

    group: Group | None
    dispatch: Dispatch


class _Batch:
    """`launched_ns` 0: it waits for a slot. `finished_ns` 0: it has not ended."""

    __slots__ = ("answered", "error", "finished_ns", "gathered_ns", "launched_ns", "reason", "rows", "slot", "tickets")

    def __init__(self, tickets: Sequence[Ticket], dispatch: Dispatch) -> None:
        self.tickets, self.rows, self.reason = tickets, dispatch.rows, dispatch.reason
        self.slot: Slot
        self.launched_ns = self.gathered_ns = self.finished_ns = 0
        self.error: BaseException | None = None
        self.answered = False


class Endpoint:
    """All methods run on the event loop. `inputs` and `outputs` are the manifest's, with their proven axes.

    `stats` goes on from an earlier engine of the same version, which may still drain: counters never fall.
    """

    def __init__(
        self, model: str, version: int, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec],
        session: Session, options: ModelOptions, host: Host, stats: Stats | None = None,
    ) -> None:  # fmt: skip
        self.model, self.version, self.inputs, self.outputs = model, version, tuple(inputs), tuple(outputs)
        self.options, self.stats, self.queue = options, stats or Stats(), Queue(options.queue)
        self._limits = options.limits.within(session.most_rows)
        self.threads_per_batch = session.threads_per_batch
        self.memory_bytes, self.is_on_gpu = session.memory_bytes, session.is_on_gpu
        self.instances, self.inline_rows = len(session.slots), session.inline_rows
        self.fails_on_values = False
        """Values of the inputs can make a run fail (see the manifest): then every ticket of the batch runs anew, alone,
        and only those fail that fail alone."""
        self.hold_requests = 0
        """While fewer requests than this wait, nothing is launched; for tests (Triton's DELAY_SCHEDULER)."""
        level = options.queue.level(0)
        self.usual = level, options.queue.policy_of(level).timeout_ns(0)
        """Priority level and timeout (0 = none) in nanoseconds of a request that asks for neither."""
        self._host = host
        self._known_shapes: set[ShapeKey] = set()
        self._free = FreeSlots(session.slots)
        self._inline_slot = session.inline_slot
        self._launched: list[_Batch] = []  # in the order of their first launch
        self._retries: deque[_Batch] = deque()  # those of them that wait to run anew
        self._stopping: Callable[[], None] | None = None

    # -- requests ------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Requests accepted and not yet answered."""
        return self.queue.requests + sum(len(batch.tickets) for batch in self._launched)

    @property
    def waiting(self) -> bool:
        """Whether anything waits for a slot."""
        return bool(self.queue.requests or self._retries)

    @property
    def running(self) -> int:
        """Batches on the device now."""
        count = 0
        for batch in self._launched:  # read several times a batch: a generator would cost more than what it counts
            if batch.launched_ns and not batch.finished_ns:
                count += 1
        return count

    def submit(self, ticket: Ticket) -> None:
        """Queue a ticket. Raises QueueFull or Stopping, and then the ticket was never accepted."""
        if self._stopping is not None:
            raise Stopping(
                f"Server is stopping, scheduler for {self.model} has stopped accepting new inference requests"
            )
        self.queue.push(ticket)
        self._host.wake(self)

    def cancel(self, ticket: Ticket) -> None:
        """Drop a ticket: out of the queue at once, or, if its batch runs, its rows are computed and thrown away."""
        if ticket.state is State.SETTLED:
            return
        if ticket.state is State.QUEUED:
            self.queue.remove(ticket)
        self._end(ticket, Cancelled("the client cancelled the request"), Outcome.CANCELLED)
        for retry in [retry for retry in self._retries if retry.tickets[0] is ticket]:
            self._retries.remove(retry)
            self._launched.remove(retry)
            self._answer_finished()  # it may have stood before others
        self._host.wake(self)

    def stop(self, stopped: Callable[[], None]) -> None:
        """Accept nothing more; answer what was accepted, then call `stopped` (the session is then idle)."""
        self._stopping = stopped
        self.hold_requests = 0
        self._host.wake(self)
        self._close_if_idle()

    # -- the device's side ---------------------------------------------------------------------------------------

    def expire(self, now_ns: int) -> None:
        """Answer every waiting ticket whose deadline has passed."""
        for ticket in self.queue.expire(now_ns):
            self._end(ticket, DeadlineExceeded("Request timeout expired"), Outcome.EXPIRED)
        self._close_if_idle()

    def offer(self, now_ns: int) -> Offer | Wait:
        """The batch to launch now, or when to look again (for a batch or for a deadline)."""
        until_ns = self.queue.next_deadline_ns()
        if self._free and self._retries:
            return Offer(None, Dispatch(1, self._retries[0].rows, _ALONE))
        if self._free and self.queue.requests and self.queue.requests >= self.hold_requests:
            self.hold_requests = 0
            for group in self.queue.groups():
                verdict = decide(group, self._limits, now_ns)
                if isinstance(verdict, Dispatch):
                    return Offer(group, verdict)
                until_ns = min((t for t in (until_ns, verdict.until_ns) if t is not None), default=None)
        return Wait(until_ns)

    def launch(self, offer: Offer, *, alone: bool = False) -> bool:
        """Take the offered tickets out of the queue and start them on a free slot.

        Where nothing else runs (`alone`), a batch that takes less than a hand-over to another thread runs here and now,
        and is answered before this returns: then True. Others that wait would wait longer for the hand-over.
        """
        now_ns = self._host.now_ns()
        if offer.group is None:
            batch = self._retries.popleft()
        else:
            batch = _Batch(self.queue.take(offer.group, offer.dispatch.count), offer.dispatch)
            self._launched.append(batch)
            for ticket in batch.tickets:
                ticket.state, ticket.launched_ns = State.RUNNING, now_ns
        inline = alone and batch.rows <= self.inline_rows
        batch.slot = self._inline_slot if inline and self._inline_slot is not None else self._free.take()
        batch.launched_ns = batch.gathered_ns = now_ns

        def done(error: BaseException | None) -> None:
            self._host.on_loop(lambda: self._completed(batch, error))

        try:
            batcher.gather(batch.slot, batch.tickets, self.inputs)
            batch.gathered_ns = self._host.now_ns()
            if inline:
                self._complete(batch, batch.slot.run())  # the device looks at the endpoint by itself
            else:
                batch.slot.launch(done)
        except Exception as error:  # nothing was launched: this batch alone is lost
            done(error)  # later: a sink that runs now could change what the device has just decided
        return inline

    def _completed(self, batch: _Batch, error: BaseException | None) -> None:
        if not batch.finished_ns:
            self._complete(batch, error)
            self._host.wake(self)

    def _complete(self, batch: _Batch, error: BaseException | None) -> None:
        batch.finished_ns, batch.error = self._host.now_ns(), error
        self._host.finished(self, batch.finished_ns - batch.launched_ns)
        is_lost = isinstance(error, DeviceLost)
        if error is not None and self.fails_on_values and len(batch.tickets) > 1 and not is_lost:
            self._split(batch)
        self._answer_finished()
        self._close_if_idle()

    def _split(self, batch: _Batch) -> None:
        """One ticket's values have spoilt the run for all: each runs anew, alone, in the batch's place."""
        live = [ticket for ticket in batch.tickets if ticket.state is State.RUNNING]
        alone = [_Batch([ticket], Dispatch(1, ticket.rows, _ALONE)) for ticket in live]
        at = self._launched.index(batch)
        self._launched[at : at + 1] = alone
        self._retries.extend(alone)
        self._release(batch)

    def _release(self, batch: _Batch) -> None:
        if batch.slot is not self._inline_slot:  # nothing else runs beside that: it needs no turn
            self._free.give(batch.slot, is_lost=isinstance(batch.error, DeviceLost))

    def _answer_finished(self) -> None:
        """Answer what has ended; with `preserve_ordering`, only what no unanswered batch stands before."""
        while (batch := self._next_finished()) is not None:
            batch.answered = True
            self._answer(batch)
            self._launched.remove(batch)  # only now: until all is answered the endpoint is not idle

    def _next_finished(self) -> _Batch | None:
        for batch in self._launched:
            if batch.answered:  # a sink that was answered has cancelled a ticket: the call above this one goes on
                return None
            if batch.finished_ns:
                return batch
            if self.options.preserve_ordering:
                return None
        return None

    def _answer(self, batch: _Batch) -> None:
        """Give every ticket its own rows, or all of them the error; then the slot is free again."""
        try:
            if batch.error is not None:  # not as itself: a BaseException would pass by, and nobody would be answered
                raise RuntimeError(str(batch.error) or repr(batch.error)) from batch.error
            parts = batcher.scatter(batch.slot.outputs(), batch.tickets, self.outputs)
        except Exception as error:
            compute = (batch.gathered_ns - batch.launched_ns, batch.finished_ns - batch.gathered_ns, 0)
            for ticket in batch.tickets:
                blamed = self._blame(ticket, error)
                if self._end(ticket, blamed, Outcome.FAILED):
                    self.stats.observe_compute(Outcome.FAILED, compute)
            # a client's own fault must not fill the log with errors
            level = logging.INFO if isinstance(blamed, InvalidInput) else logging.ERROR
            log.log(level, "a batch of %s/%d failed: %s", self.model, self.version, error, extra={"rows": batch.rows})
        else:
            if len(self._known_shapes) >= _MAX_KNOWN_SHAPES:
                self._known_shapes.clear()
            self._known_shapes.add(batch.tickets[0].shape_key)
            request_ns: list[int] = []
            queue_ns: list[int] = []
            output_ns: list[int] = []
            for ticket, part in zip(batch.tickets, parts, strict=True):
                launched_ns = ticket.launched_ns
                self._settle(ticket, part)
                if launched_ns:  # a cancelled one was counted when it was cancelled
                    now_ns = self._host.now_ns()  # its own end: the last of a batch is answered later than the first
                    queue_ns.append(launched_ns - ticket.enqueued_ns)
                    output_ns.append(now_ns - batch.finished_ns)
                    if not ticket.timed_by_sink:
                        request_ns.append(now_ns - ticket.received_ns)
            input_and_infer_ns = batch.gathered_ns - batch.launched_ns, batch.finished_ns - batch.gathered_ns
            whole_output_ns = output_ns[-1] if output_ns else 0
            self.stats.answered(request_ns, queue_ns, output_ns, input_and_infer_ns)
            self.stats.executed(batch.rows, batch.reason, (*input_and_infer_ns, whole_output_ns))
        self._release(batch)

    def _blame(self, ticket: Ticket, error: BaseException) -> ServingError:
        """The request's fault where its values or variable dimensions may ask for what cannot be; else the engine's."""
        if isinstance(error.__cause__, DeviceLost):
            return DeviceGone(f"the GPU of model {self.model!r} is lost, and this server must be started anew: {error}")
        if self.fails_on_values:
            return InvalidInput(f"model {self.model!r} cannot run on the values of these inputs: {error}")
        variable = any(DYNAMIC in spec.row_shape for spec in self.inputs)
        if variable and ticket.shape_key not in self._known_shapes:
            shapes = ", ".join(f"{s.name!r} {list(k)}" for s, k in zip(self.inputs, ticket.shape_key, strict=True))
            return InvalidInput(f"model {self.model!r} cannot run on inputs of this shape: {shapes} (a row): {error}")
        return InferenceFailed(f"model {self.model!r} failed on this batch: {error}")

    def _end(self, ticket: Ticket, error: ServingError, outcome: Outcome) -> bool:
        now_ns = self._host.now_ns()
        queue_ns = (ticket.launched_ns or now_ns) - ticket.enqueued_ns
        ticket.launched_ns = 0
        settled = self._settle(ticket, error)
        if settled:
            self.stats.ended(outcome, now_ns - ticket.received_ns, queue_ns)
        return settled

    def _settle(self, ticket: Ticket, reply: Reply) -> bool:
        try:
            return ticket.settle(reply)
        except Exception:  # a broken sink is one client's loss
            log.exception("an answer of %s/%d could not be delivered", self.model, self.version)
            return True

    def _close_if_idle(self) -> None:
        if self._stopping is not None and not self.queue.requests and not self._launched:
            stopped, self._stopping = self._stopping, _already_stopped
            if stopped is not _already_stopped:
                self._host.on_loop(stopped)  # not from here: the device may be in the middle of a decision


def _already_stopped() -> None:
    """Marks an endpoint that has told so."""
