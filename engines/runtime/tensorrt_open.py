"""Outputs whose sizes depend on values: TensorRT asks for their memory while it runs, and tells their shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engines.errors import EngineError
from engines.runtime.tensorrt_engine import TensorRtEngine
from engines.runtime.tensorrt_slot import GpuSlot
from engines.tensor import DYNAMIC

__all__ = ["OpenOutput", "known_shape", "open_outputs", "told_shapes"]


class OpenOutput:
    """The output of number `at`. `shape` is that of the last run; `error`, why there was no memory for it."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.shape: tuple[int, ...] = ()
        self.error: EngineError | None = None
        self.allocator: Any = None
        self._slot: GpuSlot | None = None

    def begin(self, slot: GpuSlot) -> None:
        """The next run is this slot's."""
        self._slot, self.shape, self.error = slot, (), None

    def memory_of(self, size_bytes: int) -> int:
        """Where the run's output may lie; 0 where there is no memory."""
        assert self._slot is not None
        try:
            return self._slot.grow(self.at, size_bytes)
        except EngineError as error:  # TensorRT knows no exceptions, and fails without memory
            self.error = error
            return 0


def open_outputs(engine: TensorRtEngine, context: Any) -> list[OpenOutput]:
    """Those of a context that knows the shapes of its inputs; it asks them from now on. Keep them as long as it."""
    found: list[OpenOutput] = []
    for at, tensor in enumerate(engine.outputs):
        if DYNAMIC in tuple(context.get_tensor_shape(tensor.name)):
            found.append(OpenOutput(at))
            found[-1].allocator = _allocator(engine.trt, found[-1])
            context.set_output_allocator(tensor.name, found[-1].allocator)
    return found


def known_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Nothing, where the size depends on values: it grows as it must."""
    return (0,) if DYNAMIC in shape else shape


def told_shapes(outputs: tuple[tuple[int, ...], ...], open_: Sequence[OpenOutput]) -> tuple[tuple[int, ...], ...]:
    """The shapes of a run's outputs, of which TensorRT told some when it ran."""
    told = {output.at: output.shape for output in open_}
    return tuple(told.get(at, shape) for at, shape in enumerate(outputs))


def _allocator(trt: Any, output: OpenOutput) -> Any:
    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)

        def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            return output.memory_of(size)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            output.shape = tuple(shape)

    return Allocator()
