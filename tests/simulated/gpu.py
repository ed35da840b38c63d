"""A simulated GPU, as `engines.runtime.driver.Driver`: memory, streams, events, captures, and what they do not allow.

Memory is real, so that answers can be checked; it is full of nonsense where CUDA says that its content is undefined.
Sources, beside those of `ordering` and `streams`: CUDA Driver API, cuMemAlloc (memory is not cleared), cuMemFree
(waits for what is under way), "API synchronization behavior" (copies are asynchronous for page-locked memory alone) and
"Error handling" (a lost device fails every later call); CUDA Programming Guide, "Default Stream".
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from engines.errors import CaptureRefused, DeviceLost, EngineError, OutOfMemory
from engines.runtime.driver import Memory
from tests.simulated.faults import Faults
from tests.simulated.ordering import Clock, Place, RuleBroken
from tests.simulated.streams import Event, Graph, Operation, Stream

__all__ = ["SimulatedGpu", "current_gpu"]

_POISON = 0xCD
_FIRST_ADDRESS, _ALIGNMENT = 0x7F00_0000_0000, 256
_FIRST_HANDLE = 1000
_COPIES = "CUDA Driver API, API synchronization behavior"
_ADDRESSES = "CUresult, CUDA_ERROR_ILLEGAL_ADDRESS"


_current = threading.local()


def current_gpu() -> SimulatedGpu:
    """Whose context the calling thread has current."""
    gpus: list[SimulatedGpu] = getattr(_current, "gpus", [])
    if not gpus:
        raise RuleBroken("a thread without a context calls TensorRT")
    return gpus[-1]


class _Block(Place):
    def __init__(self, name: str, memory: np.ndarray) -> None:
        super().__init__(name)
        self.memory = memory


class SimulatedGpu:
    """Of one process. `broken` keeps the rules that were broken, also where whoever did it passed over the error."""

    def __init__(self, faults: Faults | None = None, seed: int = 0) -> None:
        self.faults = faults or Faults()
        self.broken: list[str] = []
        self.calls: list[str] = []
        self.launches = self.replays = self.allocations = self.runs = self.compiled = 0
        self.is_lost = False
        self.fails = True
        """Whether `fail_runs` fail, where they come."""
        self._random = random.Random(seed)
        self._lock = threading.RLock()
        self._host = Clock()
        self._attached: dict[int, int] = {}
        self._blocks: dict[int, _Block] = {}
        self._pinned: dict[int, _Block] = {}
        self._streams: dict[int, Stream] = {}
        self._events: dict[int, Event] = {}
        self._graphs: dict[int, Graph] = {}
        self._next_address, self._next_handle = _FIRST_ADDRESS, _FIRST_HANDLE

    # -- what tests ask ------------------------------------------------------------------------------------------

    def held(self) -> dict[str, int]:
        """What was not given back."""
        found = {
            "blocks": len(self._blocks), "pinned": len(self._pinned), "streams": len(self._streams),
            "events": len(self._events), "graphs": len(self._graphs), "contexts": sum(self._attached.values()),
        }  # fmt: skip
        return {name: count for name, count in found.items() if count}

    def used_bytes(self) -> int:
        """Of its memory."""
        with self._lock:
            return sum(block.memory.nbytes for block in self._blocks.values())

    # -- Driver --------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        with self._call("attach", attached=False):
            me = threading.get_ident()
            self._attached[me] = self._attached.get(me, 0) + 1
            _current.gpus = [*getattr(_current, "gpus", ()), self]

    def detach(self) -> None:
        with self._lock:  # of what is lost, too
            me = threading.get_ident()
            self._require(self._attached.get(me, 0) > 0, "a context is popped that was not pushed", "cuCtxPopCurrent")
            self._attached[me] -= 1
            _current.gpus = _current.gpus[:-1]

    def memory(self) -> Memory:
        with self._call("memory"):
            return Memory(self.faults.most_bytes - self.used_bytes(), self.faults.most_bytes)

    def allocate(self, size_bytes: int, *, by_runtime: bool = False) -> int:
        """`by_runtime`: of CUDA's runtime, which finds the device's primary context by itself."""
        with self._call("allocate", safe=False, attached=not by_runtime):
            self._require(size_bytes > 0, "an allocation of no bytes", "cuMemAlloc")
            if self._is_full() or self.used_bytes() + size_bytes > self.faults.most_bytes:
                raise OutOfMemory(
                    f"out of memory: {size_bytes} bytes; {self.faults.most_bytes - self.used_bytes()} are free"
                )
            address = self._next_address
            self._next_address += -(-size_bytes // _ALIGNMENT) * _ALIGNMENT + _ALIGNMENT
            self._blocks[address] = _Block(f"memory at {address:#x}", np.full(size_bytes, _POISON, np.uint8))
            return address

    def free(self, address: int, *, by_runtime: bool = False) -> None:
        with self._call("free", safe=False, attached=not by_runtime):
            # without a context the runtime of CUDA takes that of the first device, and makes it where there is none
            is_here = getattr(_current, "gpus", [])[-1:] == [self]
            runtime = "CUDA Runtime API, Interactions with the CUDA Driver API"
            self._require(is_here, "memory is freed in a thread that has not its device's context", runtime)
            is_allocated = address in self._blocks
            self._require(is_allocated, f"{address:#x} is freed, which was not allocated or is free", "cuMemFree")
        if not self.is_lost:
            for stream in list(self._streams.values()):
                stream.drain()
        with self._lock:
            self._blocks.pop(address).memory[:] = _POISON

    def pinned(self, size_bytes: int) -> np.ndarray:
        with self._call("pinned", safe=False):
            if self._is_full():
                raise OutOfMemory(f"out of memory: {size_bytes} bytes that are page-locked")
            array = np.zeros(size_bytes, np.uint8)
            self._pinned[array.ctypes.data] = _Block(f"pinned memory of {size_bytes} bytes", array)
            return array

    def _is_full(self) -> bool:
        self.allocations += 1
        return self.allocations == self.faults.full_at or 0 < self.faults.full_from <= self.allocations

    def unpin(self, array: np.ndarray) -> None:
        with self._call("unpin", safe=False):
            self._require(array.ctypes.data in self._pinned, "memory is unpinned that was not pinned", "cuMemFreeHost")
            del self._pinned[array.ctypes.data]

    def stream(self) -> int:
        with self._call("stream"):
            handle = self._handle()
            self._streams[handle] = Stream(handle, lambda: self.is_lost, self._pause)
            return handle

    def close_stream(self, stream: int) -> None:
        with self._call("close_stream"):
            found = self._streams.pop(stream)
            # CUDA would end the work first; its owner is the one who frees what the work uses
            is_idle = self.is_lost or found.is_empty
            self._require(
                is_idle, "a stream is closed while it has work", "cuStreamDestroy, and the runtime's own rule"
            )
        found.close()

    def event(self) -> int:
        with self._call("event"):
            handle = self._handle()
            self._events[handle] = Event()
            return handle

    def close_event(self, event: int) -> None:
        with self._call("close_event"):
            del self._events[event]

    def copy_in(self, address: int, source: np.ndarray, stream: int) -> None:
        self._wait_for_room(stream)
        with self._call("copy_in"):
            host, block = self._pinned_block(source), self._block(address, source.nbytes)
            before = source.tobytes()

            def run() -> None:
                if source.tobytes() != before and not self.is_lost:
                    self._break("the source of a copy was written to while it was under way", _COPIES)
                block.memory[: source.nbytes] = source.view(np.uint8)

            self._put(stream, Operation("a copy in", lambda: ([host], [block]), run))

    def copy_out(self, target: np.ndarray, address: int, stream: int) -> None:
        self._wait_for_room(stream)
        with self._call("copy_out"):
            host, block = self._pinned_block(target), self._block(address, target.nbytes)

            def poison() -> None:
                target.view(np.uint8)[:] = _POISON

            def run() -> None:
                target.view(np.uint8)[:] = block.memory[: target.nbytes]

            self._put(stream, Operation("a copy out", lambda: ([block], [host]), run, poison))

    def record(self, event: int, stream: int) -> None:
        with self._call("record"):
            found = self._stream(stream)
            if found.graph is not None:
                self._events[event].is_captured = True
            else:
                found.record(self._events[event], self._host)

    def wait(self, stream: int, event: int) -> None:
        with self._call("wait"):
            found, awaited = self._stream(stream), self._events[event]
            if awaited.is_captured and found.graph is None:
                self._break("a stream waits for an event that was recorded within a graph", "cuStreamWaitEvent")
            if found.graph is not None and not awaited.is_captured:
                # CUDA Programming Guide, Cross-stream Dependencies and Events
                found.graph.refused = "it waits for an event from outside (CUDA_ERROR_STREAM_CAPTURE_ISOLATION)"
            elif found.graph is None:
                found.wait(awaited)

    def synchronize(self, event: int) -> None:
        with self._call("synchronize", safe=False):
            awaited = self._events[event]
            if awaited.is_captured:
                self._break("an event is waited for that was recorded within a graph", "cuEventSynchronize")
        moment = awaited.moment
        if moment is not None:
            moment.is_over.wait()
            if moment.is_lost:
                raise DeviceLost("CUDA_ERROR_LAUNCH_FAILED")
            with self._lock:
                self._host.merge(moment.clock)

    def begin_capture(self, stream: int) -> None:
        with self._call("begin_capture"):
            found = self._stream(stream)
            self._require(found.graph is None, "a stream is captured that is captured already", "cuStreamBeginCapture")
            found.graph = Graph(threading.get_ident())
            if self.faults.refuse_captures:
                found.graph.refused = "it cannot be captured (CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)"

    def end_capture(self, stream: int) -> int:
        with self._call("end_capture"):
            found = self._stream(stream)
            graph, found.graph = found.graph, None
            self._require(graph is not None, "a capture is ended that was not begun", "cuStreamEndCapture")
            assert graph is not None
            is_own = graph.thread == threading.get_ident()
            self._require(is_own, "a capture is ended in another thread", "cuStreamEndCapture")
            if graph.refused:
                raise CaptureRefused(graph.refused)
            handle = self._handle()
            self._graphs[handle] = graph
            return handle

    def replay(self, graph: int, stream: int) -> None:
        self._wait_for_room(stream)
        with self._call("replay"):
            self.replays += 1
            for operation in self._graphs[graph].operations:
                self._put(stream, operation)

    def close_graph(self, graph: int) -> None:
        with self._call("close_graph"):
            del self._graphs[graph]

    # -- for the simulated TensorRT --------------------------------------------------------------------------------

    def kernel(
        self, stream: int, what: str, reads: Sequence[int], writes: Sequence[int], run: Callable[[], None],
        others: Sequence[Place] = (),
    ) -> None:  # fmt: skip
        """Put a kernel into a stream that reads and writes at these addresses, and uses `others` alone."""
        self._wait_for_room(stream)
        with self._call("kernel"):
            self.launches += 1

            def uses() -> tuple[list[Place], list[Place]]:
                return [self._block(a) for a in reads], [*(self._block(a) for a in writes), *others]

            self._put(stream, Operation(what, uses, run))

    def is_captured(self, stream: int) -> bool:
        """Whether what is put into it is kept for a graph."""
        with self._lock:
            return self._stream(stream).graph is not None

    def memory_at(self, address: int, size_bytes: int) -> np.ndarray:
        """uint8 [size]."""
        with self._lock:
            return self._block(address, size_bytes).memory[:size_bytes]

    # -- inside --------------------------------------------------------------------------------------------------

    @contextmanager
    def _call(self, name: str, *, safe: bool = True, attached: bool = True) -> Iterator[None]:
        """`safe`: may be made by a thread that captures a stream."""
        with self._lock:
            self.calls.append(name)
            if self.faults.lost_file and not self.faults.lost_at and os.path.exists(self.faults.lost_file):
                with open(self.faults.lost_file) as file:
                    self.faults.lost_at = len(self.calls) + int(file.read() or 0)
            if self.faults.lost_at and len(self.calls) >= self.faults.lost_at:
                self.is_lost = True
            if self.is_lost:
                raise DeviceLost("CUDA_ERROR_LAUNCH_FAILED")
            if attached and not self._attached.get(threading.get_ident()):
                self._break(f"{name} in a thread that has no context", "CUresult, CUDA_ERROR_INVALID_CONTEXT")
            if not safe:
                self._refuse_in_capture(name)
            yield

    def _refuse_in_capture(self, name: str) -> None:
        for stream in self._streams.values():
            if stream.graph is not None and stream.graph.thread == threading.get_ident():
                # cuThreadExchangeStreamCaptureMode: what a thread that captures may not call
                stream.graph.refused = f"{name} was called (CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)"
                raise CaptureRefused(stream.graph.refused)

    def _wait_for_room(self, stream: int) -> None:
        """Streams take so much, and no document says how much (NVIDIA Developer Forums, topic 68937: some 1,000)."""
        found = self._streams.get(stream)
        if found is not None and found.graph is None:
            found.wait_for_room(self.faults.most_waiting)

    def _put(self, stream: int, operation: Operation) -> None:
        try:
            self._stream(stream).put(operation, self._host)
        except RuleBroken as error:
            self._note(str(error))
            raise

    def _stream(self, handle: int) -> Stream:
        streams = "CUDA Programming Guide, Default Stream"
        self._require(handle != 0, "the default stream is used, which waits for all others", streams)
        self._require(handle in self._streams, f"stream {handle} is closed, or never was", "CUresult, INVALID_HANDLE")
        return self._streams[handle]

    def _block(self, address: int, size_bytes: int = 0) -> _Block:
        block = self._blocks.get(address)
        if block is None:
            self._break(f"{address:#x} is used, which was not allocated or is free again", _ADDRESSES)
            raise EngineError("CUDA_ERROR_ILLEGAL_ADDRESS")
        is_within = size_bytes <= block.memory.nbytes
        self._require(is_within, f"{size_bytes} bytes at {address:#x}: more than there are", _ADDRESSES)
        return block

    def _pinned_block(self, array: np.ndarray) -> _Block:
        block = self._pinned.get(array.ctypes.data)
        if block is None or array.nbytes > block.memory.nbytes:
            self._break("a copy of memory that is not page-locked", _COPIES)
            raise EngineError("CUDA_ERROR_INVALID_VALUE")
        return block

    def _handle(self) -> int:
        self._next_handle += 1
        return self._next_handle

    def wait_while_it_hangs(self) -> None:
        """As every operation does, and whoever waits for one."""
        while self.faults.hang_file and os.path.exists(self.faults.hang_file):
            time.sleep(0.01)

    def _pause(self, what: str) -> None:
        self.wait_while_it_hangs()
        if self.faults.slowest_s:
            time.sleep(self._random.random() * self.faults.slowest_s)

    def _require(self, holds: bool, said: str, source: str) -> None:
        """`source` is where the rule stands: a function of the CUDA Driver API, or what is named."""
        if not holds:
            self._break(said, source)

    def _break(self, said: str, source: str) -> None:
        self._note(f"{said} ({source})")
        raise RuleBroken(self.broken[-1])

    def _note(self, said: str) -> None:
        self.broken.append(said)
