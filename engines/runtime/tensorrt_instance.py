"""One instance of a plan on a GPU: a context, three streams, and slots that copy and compute in turn.

One thread puts batches into the streams, another waits for their ends: so a batch is copied while the one before it
computes, and nobody polls. Who is to know of an end is told from the second thread.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from engines.errors import DeviceLost, EngineError, EngineFailed, OutOfMemory, ValuesRefused
from engines.manifest import GUARD_OUTPUT
from engines.runtime.buckets import Batch, Batches, Shapes
from engines.runtime.driver import Driver, cleared, held_by, let_go
from engines.runtime.flights import Flight, Flights
from engines.runtime.scratch import Scratch, ScratchPlace
from engines.runtime.session import Done
from engines.runtime.tensorrt_engine import TensorRtEngine
from engines.runtime.tensorrt_graphs import Graphs
from engines.runtime.tensorrt_open import OpenOutput, known_shape, open_outputs, told_shapes
from engines.runtime.tensorrt_slot import GpuSlot
from engines.tensor import DYNAMIC

__all__ = ["TensorRtInstance"]

log = logging.getLogger(__name__)
_ROOM = 2
"""An instance has scratch memory of its own while as much would be left: else none would be left to share."""
_SLOTS = 2
"""One is computed while the other is copied, filled, or read."""


class _Streams(NamedTuple):
    copy_in: int
    compute: int
    copy_out: int


class TensorRtInstance:
    """Opened and closed in the thread of whoever calls; everything on the GPU happens in its own two threads.

    `lost` is called, once, from one of them where the device is lost.
    """

    def __init__(
        self, driver: Driver, plan: TensorRtEngine, batches: Batches, lost: Callable[[DeviceLost], None],
        guards: Sequence[str] = (), *, graphs: bool = True, scratch: Scratch | None = None,
    ) -> None:  # fmt: skip
        """`scratch` is shared with others where the GPU has no room for one more. Nothing happens before `open`."""
        self._driver, self._plan, self._batches, self._lost = driver, plan, batches, lost
        self._guards, self._wants_graphs = tuple(guards), graphs and not plan.contexts.captures
        self._may_share, self._shared, self._place = scratch, False, ScratchPlace(0, 0)
        self._context: Any = None
        self._version = 0
        self.slots: list[GpuSlot] = []
        self._graphs = Graphs(driver)
        self._gone: DeviceLost | None = None
        self._noting = threading.Lock()
        self._flights = Flights()
        self._work: queue.SimpleQueue[tuple[GpuSlot, Flight] | None] = queue.SimpleQueue()
        self._under_way: queue.SimpleQueue[tuple[GpuSlot, Flight] | None] = queue.SimpleQueue()
        self._begun: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._enqueues = threading.Thread(target=self._enqueue_all, name="gpu-enqueue", daemon=True)
        self._completes = threading.Thread(target=self._complete_all, name="gpu-complete", daemon=True)

    def open(self) -> None:
        """Raises OutOfMemory, DeviceLost or EngineError. Close it then, too."""
        self._enqueues.start()
        error = self._begun.get()
        if error is not None:
            raise error

    def close(self) -> None:
        """No launch may be in flight. Where the GPU hangs, this does, too."""
        self._work.put(None)
        if self._enqueues.ident is not None:
            self._enqueues.join()

    @property
    def most_rows(self) -> int:
        """That a batch may have."""
        return self._batches.most_rows

    def look(self) -> float:
        """`engines.runtime.flights.Watched`, as `lose`."""
        return self._flights.look()

    def lose(self, error: DeviceLost) -> None:
        """Nothing more is put into the streams; whoever waits for it to open does no more."""
        try:
            self._note(error)
        finally:
            self._flights.end_all(error)
            self._begun.put(error)

    def _submit(self, slot: GpuSlot, done: Done) -> None:
        flight = self._flights.begin(done)
        if flight is not None:
            self._work.put((slot, flight))

    # -- the thread that fills streams -----------------------------------------------------------------------------

    def _enqueue_all(self) -> None:
        try:
            with ExitStack() as held:
                self._driver.attach()
                held.callback(self._driver.detach)
                with cleared(), self._flights.alone() as flight, self._flights.elsewhere(flight):
                    self._make(held)
                self._completes.start()
                self._begun.put(None)
                while (work := self._work.get()) is not None:
                    self._begin(*work)
                self._under_way.put(None)
                self._completes.join()
        except BaseException as error:
            self._note(error)
            self._begun.put(let_go(error))
        finally:
            self.slots = []

    def _make(self, held: ExitStack) -> None:
        """With scratch memory of its own as long as there is room; else, or where something does not fit, with that of
        others.
        """
        free, reason = self._driver.memory().free, ""
        if self._may_share is not None and free < _ROOM * self._scratch_bytes:
            reason = f"it needs {self._scratch_bytes} bytes, {free} are free"
        else:
            try:
                with ExitStack() as own, cleared():
                    self._make_all(own)
                    held.push(own.pop_all())
            except OutOfMemory as error:
                if self._may_share is None:
                    raise
                reason = str(error)
        if reason:
            log.info("an instance computes in scratch memory that others use in turn: %s", reason)
            self._shared = True
            self._make_all(held)

    def _make_all(self, held: ExitStack) -> None:
        driver, self.slots = self._driver, []
        self._streams = _Streams(*(held_by(held, driver.stream, driver.close_stream) for _ in _Streams._fields))
        if self._shared and self._may_share is not None:
            self._may_share.join(self._scratch_bytes)
            held.callback(self._may_share.leave)
        held.callback(self._drop_context)
        self._make_context()
        sizes = self._most_bytes()
        self._open = open_outputs(self._plan, self._context)
        for number in range(_SLOTS):
            tensors, lanes = (self._plan.inputs, self._plan.outputs), (id(driver), id(self))
            slot = GpuSlot(
                number, driver, self._batches, *tensors, *sizes, self._submit, lanes, fills=bool(self._guards)
            )
            held.callback(slot.close)
            self.slots.append(slot)
        held.callback(self._graphs.drop)
        for batch in self._batches.usual() if not self._open else []:
            for slot in self.slots:
                self._warm(slot, batch)
                self._capture_if_missing(slot)

    def _make_context(self) -> None:
        self._context = self._plan.contexts.make(shared=self._shared)
        if self._context is None:
            memory = self._driver.memory()
            raise OutOfMemory(
                f"TensorRT {self._plan.trt.__version__} made no context: it needs {self._scratch_bytes} bytes, "
                f"{memory.free} of {memory.total} are free"
            )

    def _require_version(self, slot: GpuSlot) -> None:
        """Make the context anew where it is not for the slot's batch, or there was no memory for it."""
        batch, version = slot.batch, self._plan.contexts.version(slot.batch.shapes)
        if version == self._version and self._context is not None:
            return
        self._driver.record(slot.events.computed, self._streams.compute)
        self._driver.synchronize(slot.events.computed)  # nothing runs in it any more
        self._drop_context()
        self._make_context()
        self._version, self._place = version, ScratchPlace(0, 0)
        self._shaped(batch.profile, batch.shapes)
        self._open = open_outputs(self._plan, self._context)

    @property
    def _scratch_bytes(self) -> int:
        return int(self._plan.engine.device_memory_size_v2)

    def _drop_context(self) -> None:
        self._context = None
        self._open = []

    def _most_bytes(self) -> tuple[list[int], list[int]]:
        """Of each input and output, at the largest shapes of any profile."""
        inputs, outputs = [0] * len(self._plan.inputs), [0] * len(self._plan.outputs)
        for profile, largest in self._plan.most_shapes(self._batches.numbers):
            shapes = tuple(largest[tensor.name] for tensor in self._plan.inputs)
            found = tuple(map(known_shape, self._shaped(profile, shapes)))
            inputs = [max(a, t.bytes_of(s)) for a, t, s in zip(inputs, self._plan.inputs, shapes, strict=True)]
            outputs = [max(a, t.bytes_of(s)) for a, t, s in zip(outputs, self._plan.outputs, found, strict=True)]
        return inputs, outputs

    def _shaped(self, profile: int, shapes: Shapes) -> tuple[tuple[int, ...], ...]:
        """Tell the context the shapes of a batch; those of the outputs. EngineFailed where it does not take them."""
        context = self._context
        if context.active_optimization_profile != profile and not context.set_optimization_profile_async(
            profile, self._streams.compute
        ):
            raise EngineFailed(f"TensorRT does not take profile {profile}")
        for tensor, shape in zip(self._plan.inputs, shapes, strict=True):
            if not context.set_input_shape(tensor.name, shape):
                raise EngineFailed(f"TensorRT does not take shape {list(shape)} of input {tensor.name!r}")
        missing = context.infer_shapes()
        if missing:
            raise EngineFailed(f"TensorRT does not know the shapes of {', '.join(missing)}")
        return tuple(tuple(context.get_tensor_shape(tensor.name)) for tensor in self._plan.outputs)

    # -- batches -------------------------------------------------------------------------------------------------

    def _begin(self, slot: GpuSlot, flight: Flight) -> None:
        try:
            if self._gone is not None:
                raise self._gone
            self._enqueue(slot, flight)
            with self._flights.elsewhere(flight):  # others may have their turn
                self._capture_if_missing(slot)
        except BaseException as error:
            self._fail(slot, flight, error)
        else:
            self._under_way.put((slot, flight))

    def _enqueue(self, slot: GpuSlot, flight: Flight) -> None:
        """From here on the GPU alone is waited for, in these calls, too, where its streams are full."""
        driver, streams, events = self._driver, self._streams, slot.events
        self._flights.start(flight)
        driver.wait(streams.copy_in, events.consumed)  # what the set is filled for again, the engine has read
        for buffer, size in zip(slot.input_buffers, slot.copied_bytes(), strict=True):
            driver.copy_in(buffer.device, buffer.host[:size], streams.copy_in)
        driver.record(events.copied, streams.copy_in)
        driver.wait(streams.compute, events.copied)
        try:
            outputs = self._compute(slot, flight)
        except EngineFailed:
            driver.memory()  # raises DeviceLost where that is why: TensorRT does not tell
            raise
        driver.record(events.computed, streams.compute)
        driver.wait(streams.copy_out, events.computed)
        for buffer, size in zip(slot.output_buffers, slot.answer_bytes(outputs), strict=True):
            driver.copy_out(buffer.host[:size], buffer.device, streams.copy_out)
        driver.record(events.finished, streams.copy_out)
        slot.answers = {tensor.name: slot.view(at, outputs[at]) for at, tensor in enumerate(self._plan.outputs)}

    def _compute(self, slot: GpuSlot, flight: Flight) -> tuple[tuple[int, ...], ...]:
        """The shapes of the outputs."""
        if not self._shared and not self._plan.contexts.compiles:
            return self._replay_or_run(slot)
        with self._flights.elsewhere(flight):  # a compiler may be waited for, its own or that of whose turn it is
            self._require_version(slot)
            return self._compute_in_turn(slot)

    def _compute_in_turn(self, slot: GpuSlot) -> tuple[tuple[int, ...], ...]:
        """Within its turn, where the scratch memory is shared."""
        if self._may_share is None or not self._shared:
            return self._replay_or_run(slot)
        with self._may_share.turn(self._streams.compute, self._scratch_bytes) as place:
            if place != self._place:
                self._context.set_device_memory(*place)
                self._graphs.drop()
                self._place = place
            return self._replay_or_run(slot)

    def _replay_or_run(self, slot: GpuSlot) -> tuple[tuple[int, ...], ...]:
        """Replay the batch's graph, or put the engine's own work into the stream."""
        graph = self._graphs.of(slot)
        if graph is None:
            return self._run(slot)
        self._driver.replay(graph.handle, self._streams.compute)
        self._driver.record(slot.events.consumed, self._streams.compute)
        return graph.outputs

    def _run(self, slot: GpuSlot) -> tuple[tuple[int, ...], ...]:
        """Without a graph."""
        told = told_shapes(self._tell(slot, consumed=True), self._execute(slot))
        if any(DYNAMIC in shape for shape in told):
            raise EngineFailed("TensorRT does not tell the shapes of its outputs")
        return told

    def _tell(self, slot: GpuSlot, *, consumed: bool) -> tuple[tuple[int, ...], ...]:
        """The context what it is about to run. `consumed`: it records that event as soon as it has read the inputs."""
        batch, context = slot.batch, self._context
        outputs = self._shaped(batch.profile, batch.shapes)
        tensors = (*self._plan.inputs, *self._plan.outputs)
        for tensor, buffer in zip(tensors, (*slot.input_buffers, *slot.output_buffers), strict=True):
            if not context.set_tensor_address(tensor.name, buffer.device):
                raise EngineFailed(f"TensorRT does not take the address of {tensor.name!r}")
        context.set_input_consumed_event(slot.events.consumed if consumed else 0)
        return outputs

    def _execute(self, slot: GpuSlot) -> list[OpenOutput]:
        """What was told; those of its outputs whose shapes it tells by itself."""
        for output in self._open:
            output.begin(slot)
        if not self._context.execute_async_v3(self._streams.compute):
            raise next((o.error for o in self._open if o.error), None) or EngineFailed("TensorRT did not run the batch")
        return self._open

    def _warm(self, slot: GpuSlot, batch: Batch) -> None:
        """Run it once, to its end: what is made at a first run cannot be captured."""
        slot.batch = batch
        with self._flights.alone() as flight:
            self._enqueue(slot, flight)
            self._driver.synchronize(slot.events.finished)

    def _capture_if_missing(self, slot: GpuSlot) -> None:
        """While it is loaded, and again where what was captured is void since the scratch memory moved."""
        if not self._wants_graphs or self._open or not self._graphs.lacks(slot):
            return
        try:
            if self._may_share is None or not self._shared:
                self._capture(slot)
                return
            with self._may_share.turn(self._streams.compute, self._scratch_bytes) as place:
                if place == self._place:  # else it has moved since the batch ran
                    self._capture(slot)
        except DeviceLost:
            raise
        except EngineError as error:  # the batch itself runs
            self._graphs.refuse(slot.batch, error)

    def _capture(self, slot: GpuSlot) -> None:
        """Run what was just run again, into a graph."""
        # an event that is recorded within a capture is the graph's own, and nobody outside may wait for it
        outputs = self._tell(slot, consumed=False)
        self._graphs.capture(slot, self._streams.compute, lambda: self._execute(slot), outputs)

    # -- ends ----------------------------------------------------------------------------------------------------

    def _complete_all(self) -> None:
        with ExitStack() as held:
            try:
                self._driver.attach()
                held.callback(self._driver.detach)
            except EngineError as error:  # every batch is told so
                self._note(error)
            while (work := self._under_way.get()) is not None:
                self._complete(*work)

    def _complete(self, slot: GpuSlot, flight: Flight) -> None:
        try:
            self._driver.synchronize(slot.events.finished)
            error: BaseException | None = self._refusal(slot)
        except BaseException as raised:
            self._note(raised)
            error = let_go(raised)
        self._flights.end(flight, error)

    def _fail(self, slot: GpuSlot, flight: Flight, error: BaseException) -> None:
        """What of it is in the streams may still use the slot's memory, and some of its events were not recorded."""
        self._flights.start(flight)
        try:
            for stream in self._streams if self._gone is None else ():
                self._driver.record(slot.events.finished, stream)
                self._driver.synchronize(slot.events.finished)
        except Exception as worse:
            self._note(worse)
        self._note(error)
        self._flights.end(flight, let_go(error))

    def _note(self, error: BaseException) -> None:
        with self._noting:
            if not isinstance(error, DeviceLost) or self._gone is not None:
                return
            self._gone = error
        self._lost(error)

    def _refusal(self, slot: GpuSlot) -> ValuesRefused | None:
        """What the first guard that found something says. Its counts are nobody's answer."""
        counts = slot.answers.pop(GUARD_OUTPUT, None)
        if counts is None:
            return None
        found = [text for text, count in zip(self._guards, counts, strict=True) if text and count]
        return ValuesRefused(found[0]) if found else None
