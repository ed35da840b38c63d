"""One CPU or GPU: decides whose batch runs next. Endpoints never launch by themselves."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from app.serving.endpoint import Endpoint, Offer
from app.serving.fairshare import FairShare

__all__ = ["Device", "Loop"]

_QUANTUM_NS = 2_000_000


class Loop(Protocol):
    """The part of an asyncio event loop that is used; tests pass one they can hold."""

    def call_soon(self, callback: Callable[..., Any], *args: Any) -> Any: ...

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> Any: ...

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any) -> Any: ...


class Device:
    """`threads` is the capacity: running batches use their sessions' threads and may not exceed it, except that

    - a batch wider than the device runs alone, and
    - no model with work waits while another runs two batches: it starts at once, on borrowed threads.

    Of the models that run nothing, the one whose turn it is goes first; where its threads are not free yet, the others
    wait with it, or narrow batches could keep a wide one waiting for ever.
    """

    def __init__(self, loop: Loop, threads: int, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.threads, self.threads_used = threads, 0
        self._loop, self.now_ns = loop, clock
        self._share: FairShare[Endpoint] = FairShare(_QUANTUM_NS)
        self._waiting: dict[Endpoint, None] = {}  # in order of arrival
        self._estimate_ns: dict[Endpoint, int] = {}
        self._charged_ns: dict[Endpoint, list[int]] = {}
        self._pump_scheduled = False
        self._timer: Any = None
        self._timer_ns = 0
        self._held = False

    # -- Host, for endpoints -------------------------------------------------------------------------------------

    def on_loop(self, call: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(call)

    def wake(self, endpoint: Endpoint) -> None:
        self._waiting[endpoint] = None
        self._schedule()

    def finished(self, endpoint: Endpoint, spent_ns: int) -> None:
        self.threads_used -= endpoint.threads_per_batch
        spent_ns *= endpoint.threads_per_batch
        self._share.charge(endpoint, spent_ns - self._charged_ns[endpoint].pop(0))
        before = self._estimate_ns.get(endpoint, spent_ns)
        self._estimate_ns[endpoint] = (3 * before + spent_ns) // 4

    # -- control -------------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Launch nothing until `release`; deadlines still expire. For tests."""
        self._held = True

    def release(self) -> None:
        self._held = False
        self._schedule()

    def detach(self, endpoint: Endpoint) -> None:
        """Forget an endpoint that has stopped."""
        self._waiting.pop(endpoint, None)
        self._share.forget(endpoint)
        self._estimate_ns.pop(endpoint, None)
        self._charged_ns.pop(endpoint, None)

    # -- the loop ------------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if not self._pump_scheduled:
            self._pump_scheduled = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Expire, then launch while something may run, then sleep until the next deadline or queue delay."""
        self._pump_scheduled = False
        now_ns = self.now_ns()
        offers: dict[Endpoint, Offer] = {}
        until_ns: int | None = None
        for endpoint in list(self._waiting):
            endpoint.expire(now_ns)
        for endpoint in list(self._waiting):  # all have expired: an answer may bring a request to any of them
            wake_ns = self._look(endpoint, offers, now_ns)
            if wake_ns is not None:
                until_ns = wake_ns if until_ns is None else min(until_ns, wake_ns)
        while offers and not self._held:
            chosen = self._next(offers)
            if chosen is None:
                break
            is_over = self._launch(chosen, offers.pop(chosen))
            wake_ns = self._look(chosen, offers, now_ns)
            if wake_ns is not None:
                until_ns = wake_ns if until_ns is None else min(until_ns, wake_ns)
            if is_over and self._waiting:
                self._schedule()  # the loop has others to serve, who may bring rows for the next batch
                break
        self._sleep_until(until_ns, now_ns)

    def _look(self, endpoint: Endpoint, offers: dict[Endpoint, Offer], now_ns: int) -> int | None:
        """Note what an endpoint offers; return when it wants to be looked at again."""
        if not endpoint.waiting:
            self._waiting.pop(endpoint, None)
            if not endpoint.running:  # else it is using the device, and no time away forgives its debt
                self._share.leave(endpoint, now_ns)
            return None
        self._share.enter(endpoint, now_ns)
        verdict = endpoint.offer(now_ns)
        if isinstance(verdict, Offer):
            offers[endpoint] = verdict
            return endpoint.queue.next_deadline_ns()
        return verdict.until_ns

    def _next(self, offers: dict[Endpoint, Offer]) -> Endpoint | None:
        """Who launches now, if anyone may. Those with nothing running come before those with something."""
        idle = [endpoint for endpoint in offers if not endpoint.running]
        if idle:
            free = self._fits(self._share.next(idle))
            crowded = not free and any(other.running >= 2 for other in self._charged_ns)
            return self._share.take(idle) if free or crowded else None
        able = [endpoint for endpoint in offers if self._fits(endpoint)]
        return self._share.take(able) if able else None

    def _fits(self, endpoint: Endpoint) -> bool:
        return not self.threads_used or self.threads_used + endpoint.threads_per_batch <= self.threads

    def _launch(self, endpoint: Endpoint, offer: Offer) -> bool:
        """Whether it has run by now, and took the loop's time."""
        estimate_ns = self._estimate_ns.get(endpoint, _QUANTUM_NS)
        self._share.charge(endpoint, estimate_ns)
        self._charged_ns.setdefault(endpoint, []).append(estimate_ns)
        alone = not self.threads_used
        self.threads_used += endpoint.threads_per_batch
        return endpoint.launch(offer, alone=alone)

    def _sleep_until(self, until_ns: int | None, now_ns: int) -> None:
        if until_ns == self._timer_ns and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if until_ns is not None:
            self._timer_ns = until_ns
            self._timer = self._loop.call_later(max(0, until_ns - now_ns) / 1e9, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._pump()
