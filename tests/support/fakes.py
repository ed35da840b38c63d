"""Stand-ins with a handle: an event loop and an engine that move only when a test says so."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from app.serving.device import Device
from app.serving.endpoint import Endpoint
from app.serving.limits import ModelOptions
from app.serving.ticket import Reply, Ticket
from engines.runtime.session import Done
from engines.tensor import TensorSpec

__all__ = ["HeldLoop", "HeldSession", "HeldSlot", "Sink", "endpoint_on", "ticket"]


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

    def __init__(self, function: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
        self._function = function
        self.inputs: dict[str, np.ndarray] = {}
        self.done: Done | None = None
        self.batches: list[dict[str, np.ndarray]] = []

    def bind(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        assert self.done is None, "bound while a batch runs"
        self.inputs = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
        return self.inputs

    def launch(self, done: Done) -> None:
        self.done = done
        self.batches.append({name: array.copy() for name, array in self.inputs.items()})

    def outputs(self) -> dict[str, np.ndarray]:
        return self._function(self.inputs)

    def finish(self, error: BaseException | None = None) -> None:
        """End the running batch, well or with an error."""
        done, self.done = self.done, None
        assert done is not None, "nothing runs on this slot"
        done(error)


class HeldSession:
    """A session of held slots."""

    def __init__(
        self,
        slots: int = 1,
        threads_per_batch: int = 1,
        function: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]] = lambda inputs: {"y": inputs["x"]},
    ) -> None:
        self._slots = [HeldSlot(function) for _ in range(slots)]
        self.threads_per_batch, self.memory_bytes, self.closed = threads_per_batch, 0, False

    @property
    def slots(self) -> Sequence[HeldSlot]:
        return self._slots

    @property
    def running(self) -> list[HeldSlot]:
        return [slot for slot in self._slots if slot.done is not None]

    def close(self) -> None:
        self.closed = True


class Sink:
    """Keeps what it was sent (arrays copied, as the contract demands)."""

    def __init__(self) -> None:
        self.replies: list[Any] = []

    def send(self, reply: Reply, *, final: bool) -> None:
        assert final
        self.replies.append({n: a.copy() for n, a in reply.items()} if isinstance(reply, Mapping) else reply)

    @property
    def reply(self) -> Any:
        """The one reply."""
        assert len(self.replies) == 1, self.replies
        return self.replies[0]


def endpoint_on(
    device: Device, session: HeldSession, options: ModelOptions | None = None, name: str = "m", width: int = 1
) -> Endpoint:
    """An endpoint y [N, width] = f(x [N, width]) on a device."""
    x, y = TensorSpec("x", "FP32", (-1, width), 0), TensorSpec("y", "FP32", (-1, width), 0)
    return Endpoint(name, 1, [x], [y], session, options or ModelOptions(), device)


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
