"""Stand-ins with a handle: an event loop and an engine that move only when a test says so."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.serving.device import Device
from app.serving.endpoint import Endpoint
from app.serving.fitting import Call, InputTensor
from app.serving.gateway import Gateway
from app.serving.limits import ModelOptions
from app.serving.registry import ModelState, Registry, Version
from app.serving.ticket import Reply, Ticket
from engines.runtime.session import Done
from engines.tensor import TensorSpec

__all__ = ["MS", "Bench", "HeldLoop", "HeldSession", "HeldSlot", "Sent", "Sink", "endpoint_on", "ticket"]

Function = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
MS = 1_000_000
"""Nanoseconds in a millisecond."""


class HeldLoop:
    """A loop with a clock of its own (`now_ns`), run step by step. Satisfies `app.serving.device.Loop`."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000
        self._soon: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self._later: list[tuple[int, int, _Timer]] = []
        self._numbers = itertools.count()

    def call_soon(self, callback: Callable[..., Any], *args: Any) -> None:
        self._soon.append((callback, args))

    call_soon_threadsafe = call_soon

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> _Timer:
        timer = _Timer(callback, args)
        heapq.heappush(self._later, (self.now_ns + round(delay * 1e9), next(self._numbers), timer))
        return timer

    @property
    def timers(self) -> int:
        """Timers that may still fire."""
        return sum(not timer.cancelled for _, _, timer in self._later)

    def run(self) -> None:
        """Run everything that is due, without moving the clock."""
        while self._soon or (self._later and self._later[0][0] <= self.now_ns):
            while self._later and self._later[0][0] <= self.now_ns:
                timer = heapq.heappop(self._later)[2]
                if not timer.cancelled:
                    self._soon.append((timer.callback, timer.args))
            batch, self._soon = self._soon, []
            for callback, args in batch:
                callback(*args)

    def advance(self, duration_ns: int) -> None:
        """Move the clock, running timers at their own times on the way."""
        target_ns = self.now_ns + duration_ns
        self.run()
        while self._later and self._later[0][0] <= target_ns:
            self.now_ns = max(self.now_ns, self._later[0][0])
            self.run()
        self.now_ns = target_ns
        self.run()


class _Timer:
    def __init__(self, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.callback, self.args, self.cancelled = callback, args, False

    def cancel(self) -> None:
        self.cancelled = True


class HeldSlot:
    """Holds a launched batch until `finish`; its outputs are `function` of its inputs (default: y = x)."""

    lanes: tuple[Hashable, ...] = ()

    def __init__(self, function: Function, launched: list[dict[str, np.ndarray]] | None = None) -> None:
        self.function, self._launched = function, [] if launched is None else launched
        self.on_launch: Callable[[dict[str, np.ndarray]], None] = lambda batch: None
        self.inputs: dict[str, np.ndarray] = {}
        self.done: Done | None = None
        self.batches: list[dict[str, np.ndarray]] = []
        self.refuses: Exception | None = None
        """Raised by the next `bind`."""
        self.fails: Callable[[dict[str, np.ndarray]], BaseException | None] = lambda batch: None
        self.ran_inline = 0

    def bind(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        assert self.done is None, "bound while a batch runs"
        refuses, self.refuses = self.refuses, None
        if refuses is not None:
            raise refuses
        self.inputs = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
        return self.inputs

    def launch(self, done: Done) -> None:
        self.done = done
        self.batches.append({name: array.copy() for name, array in self.inputs.items()})
        self._launched.append(self.batches[-1])
        self.on_launch(self.batches[-1])

    def run(self) -> BaseException | None:
        """At once; `fails` says what becomes of it."""
        self.launch(lambda error: None)
        self.done = None
        self.ran_inline += 1
        return self.fails(self.batches[-1])

    def outputs(self) -> dict[str, np.ndarray]:
        return self.function(self.inputs)

    def finish(self, error: BaseException | None = None, times: int = 1) -> None:
        """End the running batch, well or with an error."""
        done, self.done = self.done, None
        assert done is not None, "nothing runs on this slot"
        for _ in range(times):
            done(error)


class HeldSession:
    """A session of held slots. `launched` holds the inputs of every batch, in the order of their launches."""

    is_on_gpu = False

    def __init__(
        self, slots: int = 1, threads_per_batch: int = 1, function: Function = lambda inputs: {"y": inputs["x"]},
        inline_rows: int = 0, own_inline_slot: bool = False, most_rows: int = 0,
    ) -> None:  # fmt: skip
        self.launched: list[dict[str, np.ndarray]] = []
        self._slots = [HeldSlot(function, self.launched) for _ in range(slots)]
        self.threads_per_batch, self.memory_bytes, self.closed = threads_per_batch, 0, False
        self.inline_rows, self.most_rows = inline_rows, most_rows
        self.inline_slot = HeldSlot(function, self.launched) if own_inline_slot else None

    @property
    def slots(self) -> Sequence[HeldSlot]:
        return self._slots

    @property
    def all_slots(self) -> list[HeldSlot]:
        """With the one that runs batches of the loop alone."""
        return [*self._slots, *([self.inline_slot] if self.inline_slot else [])]

    @property
    def running(self) -> list[HeldSlot]:
        return [slot for slot in self._slots if slot.done is not None]

    def close(self) -> None:
        self.closed = True


class Sink:
    """Keeps what it was sent (arrays copied, as the contract demands)."""

    def __init__(self) -> None:
        self.replies: list[Any] = []
        self.acts: list[Callable[[], object]] = []
        """Run after each reply, inside `send`; what they raise, the sink raises."""

    def send(self, reply: Reply, *, final: bool) -> None:
        assert final
        self.replies.append({n: a.copy() for n, a in reply.items()} if isinstance(reply, Mapping) else reply)
        for act in self.acts:
            act()

    @property
    def reply(self) -> Any:
        """The one reply."""
        assert len(self.replies) == 1, self.replies
        return self.replies[0]


def endpoint_on(
    device: Device,
    session: HeldSession,
    options: ModelOptions | None = None,
    name: str = "m",
    width: int = 1,
    outputs: Sequence[str] = ("y",),
) -> Endpoint:
    """An endpoint y [N, width] = f(x [N, width]) on a device; width -1 is variable."""
    x = TensorSpec("x", "FP32", (-1, width), 0)
    answers = [TensorSpec(output, "FP32", (-1, width), 0) for output in outputs]
    return Endpoint(name, 1, [x], answers, session, options or ModelOptions(), device)


def ticket(
    loop: HeldLoop, value: float = 0.0, rows: int = 1, *, level: int = 0, timeout_ns: int = 0, width: int = 1
) -> tuple[Ticket, Sink]:
    """A ticket whose rows all hold `value`, and its sink."""
    sink = Sink()
    made = Ticket(
        {"x": np.full((rows, width), value, np.float32)},
        rows,
        ((width,),),
        sink,
        level=level,
        received_ns=loop.now_ns,
        enqueued_ns=loop.now_ns,
        deadline_ns=loop.now_ns + timeout_ns if timeout_ns else 0,
    )
    return made, sink


@dataclass
class Sent:
    """A request that was accepted."""

    ticket: Ticket
    sink: Sink
    bench: Bench

    @property
    def answered(self) -> bool:
        return bool(self.sink.replies)

    @property
    def reply(self) -> Any:
        return self.sink.reply

    @property
    def values(self) -> list[float]:
        """The first column of its output y."""
        return self.reply["y"][:, 0].tolist()

    def then(self, act: Callable[[], object]) -> None:
        """Do something from inside the sink when it is answered, as a client that reacts at once would."""
        self.sink.acts.append(act)

    def cancel(self) -> None:
        self.bench.gateway.cancel(self.bench.endpoint, self.ticket)
        self.bench.loop.run()


class Bench:
    """One model behind a gateway, on a device of its own or on that of another bench (`beside`)."""

    def __init__(
        self,
        options: ModelOptions | None = None,
        *,
        beside: Bench | None = None,
        slots: int = 1,
        threads_per_batch: int = 1,
        threads: int = 4,
        name: str = "m",
        width: int = -1,
        function: Function = lambda inputs: {"y": inputs["x"]},
        outputs: Sequence[str] = ("y",),
        inline_rows: int = 0,
        own_inline_slot: bool = False,
        most_rows: int = 0,
    ) -> None:
        self.loop = beside.loop if beside else HeldLoop()
        self.device = beside.device if beside else Device(self.loop, threads, clock=lambda: self.loop.now_ns)
        self.session = HeldSession(slots, threads_per_batch, function, inline_rows, own_inline_slot, most_rows)
        self.endpoint = endpoint_on(self.device, self.session, options, name, width, outputs)
        registry = Registry()
        registry.set(Version(name, 1, ModelState.READY, endpoint=self.endpoint))
        self.gateway = Gateway(registry, self.device)
        self.stats = self.endpoint.stats

    def send(
        self,
        rows: int = 1,
        value: float = 0.0,
        *,
        width: int = 1,
        priority: int = 0,
        timeout_ms: int = 0,
        outputs: tuple[str, ...] | None = None,
        run: bool = True,
    ) -> Sent:
        """Submit `rows` rows of `value` and let the loop run; raises what the gateway raises."""
        sink = Sink()
        x = InputTensor("FP32", np.full((rows, width), value, np.float32))
        call = Call({"x": x}, outputs, priority, timeout_ms * 1000)
        made = self.gateway.submit(self.endpoint, call, sink, self.loop.now_ns)
        if run:
            self.loop.run()
        return Sent(made, sink, self)

    def finish(self, error: BaseException | None = None) -> None:
        """End the batches that run now."""
        for slot in self.session.running:
            slot.finish(error)
        self.loop.run()

    def release(self) -> None:
        """End `device.hold()`."""
        self.device.release()
        self.loop.run()

    def advance_ms(self, duration_ms: int) -> None:
        self.loop.advance(duration_ms * MS)

    @property
    def launched_rows(self) -> list[int]:
        """Rows of every batch, in the order of their launches."""
        return [len(batch["x"]) for batch in self.session.launched]
