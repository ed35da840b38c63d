"""The one door into serving: submit, cancel, list, stop. Checks that a request fits its model; knows no bytes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from app.serving.device import Device
from app.serving.endpoint import Endpoint
from app.serving.errors import InvalidInput, QueueFull, Stopping
from app.serving.fitting import Call, Fitted, fit
from app.serving.registry import Registry
from app.serving.stats import Cells, Stats, summed
from app.serving.ticket import Outcome, ReplySink, Ticket
from engines.runtime.session import Session

__all__ = ["Gateway"]


_LAST_WORDS_NS = 5_000_000_000
"""Requests that other devices answer may go on for so long after a GPU was lost."""


async def _nobody_to_tell() -> None:
    pass


class Gateway:
    """All methods run on the event loop."""

    is_elsewhere = False

    def __init__(self, registry: Registry, device: Device, gpus: Device | None = None) -> None:
        """`device` is the CPU, `gpus` what runs batches beside it, if anything does."""
        self.registry, self.device, self.gpus = registry, device, gpus
        self.stopping = False
        self.lost = ""
        """Why a GPU is lost: this process should then be started anew; empty while all is well."""
        self._lost_ns = 0
        self.counted_elsewhere: Callable[[Stats], Sequence[Cells]] = lambda _: ()
        """What front ends have counted of the same version."""
        self.published: Callable[[], Awaitable[None]] = _nobody_to_tell
        """Waits until every front end knows what is served now."""
        self._leaving: set[Endpoint] = set()

    @property
    def in_flight(self) -> int:
        """Requests accepted and not yet answered, over all models."""
        return sum(endpoint.in_flight for endpoint in self.endpoints())

    def endpoints(self) -> list[Endpoint]:
        """Those of the registry, and those that were replaced and still drain."""
        return list(dict.fromkeys([*self.registry.endpoints(), *self._leaving]))

    def stats(self, endpoint: Endpoint) -> Stats:
        """Everything counted of an endpoint's version, in all processes."""
        return summed(endpoint.stats, self.counted_elsewhere(endpoint.stats))

    def takes(self, model: str, version: int | None) -> bool:
        """Every call may come here."""
        return True

    def resolve(self, model: str, version: int | None = None) -> Endpoint:
        """The endpoint for a model; raises UnknownModel or ModelNotReady."""
        return self.registry.resolve(model, version)

    def submit(
        self, endpoint: Endpoint, call: Call, sink: ReplySink, received_ns: int, *, accepted: bool = False
    ) -> Ticket:
        """Queue a request; its answer goes to `sink` exactly once. One that was `accepted` before a stop still is.

        Raises InvalidInput where it does not fit the model, QueueFull or Stopping where it is refused; then `sink` is
        never used.
        """
        try:
            fitted = fit(endpoint, call)
        except InvalidInput:
            endpoint.stats.ended(Outcome.REJECTED, self.device.now_ns() - received_ns, None, "OTHER")
            raise
        return self.enqueue(endpoint, fitted, call, sink, received_ns, accepted=accepted)

    def enqueue(
        self, endpoint: Endpoint, fitted: Fitted, call: Call, sink: ReplySink, received_ns: int, *,
        accepted: bool = False,
    ) -> Ticket:  # fmt: skip
        """The same for what is known to fit; of `call`, only what it asks for is read."""
        now_ns = self.device.now_ns()
        level, timeout_ns = endpoint.usual
        if call.priority or call.timeout_us:
            queue = endpoint.options.queue
            level = queue.level(call.priority)
            timeout_ns = queue.policy_of(level).timeout_ns(call.timeout_us * 1000)
        try:
            if self.stopping and not accepted:
                raise Stopping(
                    f"Server is stopping, scheduler for {endpoint.model} has stopped accepting new inference requests"
                )
            ticket = Ticket(
                fitted.arrays, fitted.rows, fitted.shape_key, sink,
                outputs=call.outputs,
                level=level,
                received_ns=received_ns,
                enqueued_ns=now_ns,
                sequence_id=call.sequence_id,
            )  # fmt: skip
            ticket.deadline_ns = now_ns + timeout_ns if timeout_ns else 0
            endpoint.submit(ticket)
        except (QueueFull, Stopping):
            endpoint.stats.ended(Outcome.REJECTED, now_ns - received_ns, None)
            raise
        return ticket

    def cancel(self, endpoint: Endpoint, ticket: Ticket) -> None:
        """The client has gone: drop its ticket."""
        endpoint.cancel(ticket)

    def lose(self, reason: str) -> None:
        """A GPU is lost; nothing brings it back in this process."""
        if not self.lost:
            self.lost, self._lost_ns = reason, self.device.now_ns()

    @property
    def is_spent(self) -> bool:
        """Whether to be started anew is all that is left: a GPU is lost, and nobody waits any more, or long enough."""
        return bool(self.lost) and (not self.in_flight or self.device.now_ns() - self._lost_ns >= _LAST_WORDS_NS)

    def device_of(self, session: Session) -> Device:
        """Where its batches run."""
        return self.gpus if session.is_on_gpu and self.gpus is not None else self.device

    def stop(self) -> None:
        """Admit nothing more. What was accepted is still answered."""
        self.stopping = True

    def retire(self, endpoint: Endpoint, stopped: Callable[[], None]) -> None:
        """Stop one endpoint, whether or not the registry still knows it; `stopped` once all it accepted is answered."""

        def gone() -> None:
            self._leaving.discard(endpoint)
            for device in (self.device, self.gpus):
                if device is not None:
                    device.detach(endpoint)
            stopped()

        self._leaving.add(endpoint)
        endpoint.stop(gone)
