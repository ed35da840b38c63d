"""Streams, events and graphs of a simulated GPU. Each stream has a thread, which does its work in order and takes time.

Sources: CUDA Programming Guide, "Asynchronous Concurrent Execution" and "CUDA Graphs" (a captured stream runs nothing;
a graph keeps the arguments of its nodes; waiting for an event from outside the capture is an error of isolation, and an
event that was recorded within one cannot be waited for outside); CUDA Driver API, cuStreamBeginCapture (thread-local:
the capturing thread may make no potentially unsafe call).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.simulated.ordering import Clock, Place

__all__ = ["Event", "Graph", "Operation", "Stream"]


@dataclass(frozen=True)
class Operation:
    """`uses` gives what it reads and writes, looked up by its addresses whenever it is put into a stream."""

    what: str
    uses: Callable[[], tuple[Sequence[Place], Sequence[Place]]]
    run: Callable[[], None]
    before: Callable[[], None] = lambda: None
    """Done at once, on the host, when it is put into a stream."""


class _Moment:
    """One record of an event."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.is_over = threading.Event()
        self.is_lost = False


class Event:
    """`moment` None: it was never recorded. `captured`: within a graph, which owns that record."""

    def __init__(self) -> None:
        self.moment: _Moment | None = None
        self.is_captured = False


@dataclass
class Graph:
    """What was put into a stream while it was captured; `refused` says why it cannot be a graph."""

    thread: int
    operations: list[Operation] = field(default_factory=list)
    refused: str = ""


class Stream:
    """`is_lost` is looked at before each operation; what is not done then never is."""

    def __init__(self, number: int, is_lost: Callable[[], bool], pause: Callable[[str], None]) -> None:
        self.number, self.clock = number, Clock()
        self.graph: Graph | None = None
        self._is_lost, self._pause = is_lost, pause
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._left = 0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name=f"simulated-stream-{number}", daemon=True)
        self._thread.start()

    def put(self, operation: Operation, host: Clock) -> None:
        """RuleBroken where something else that may be under way uses the same memory."""
        if self.graph is not None:
            self.graph.operations.append(operation)
            return
        self.clock.merge(host)
        tick = self.clock.advance(self.number)
        reads, writes = operation.uses()
        for place in reads:
            place.read(self.clock, self.number, tick, operation.what)
        for place in writes:
            place.write(self.clock, self.number, tick, operation.what)
        operation.before()
        self._add(lambda: self._do(operation))

    def record(self, event: Event, host: Clock) -> None:
        self.clock.merge(host)
        self.clock.advance(self.number)
        moment = event.moment = _Moment(self.clock.copy())
        event.is_captured = False

        def over() -> None:
            moment.is_lost = self._is_lost()
            moment.is_over.set()

        self._add(over)

    def wait(self, event: Event) -> None:
        moment = event.moment
        if moment is not None:
            self.clock.merge(moment.clock)
            self._add(lambda: (moment.is_over.wait(), None)[1])

    def wait_for_room(self, most: int) -> None:
        """Until fewer operations than these are left."""
        with self._changed:
            self._changed.wait_for(lambda: self._left < most)

    @property
    def is_empty(self) -> bool:
        with self._changed:
            return self._left == 0

    def drain(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._left == 0)

    def close(self) -> None:
        self._work.put(None)
        self._thread.join()

    def _add(self, work: Callable[[], None]) -> None:
        with self._changed:
            self._left += 1
        self._work.put(work)

    def _do(self, operation: Operation) -> None:
        self._pause(operation.what)
        if not self._is_lost():  # what it leaves undone is nobody's any more
            operation.run()

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except AssertionError:
                pass  # a broken rule, which the GPU has noted
            finally:
                with self._changed:
                    self._left -= 1
                    self._changed.notify_all()
