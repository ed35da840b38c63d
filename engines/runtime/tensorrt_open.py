"""Outputs whose sizes depend on values: TensorRT asks for their memory while it runs, and tells their shapes."""

from __future__ import annotations

from typing import Any, Protocol

from engines.errors import EngineError
from engines.runtime.tensorrt_engine import TensorRtEngine
from engines.runtime.tensorrt_slot import GpuSlot
from engines.tensor import DYNAMIC

__all__ = ["OpenOutput", "open_outputs"]


class OpenOutput(Protocol):
    """The output of number `at`. `shape` is that of the last run; `error`, why there was no memory for it."""

    at: int
    shape: tuple[int, ...]
    error: EngineError | None

    def begin(self, slot: GpuSlot) -> None:
        """The next run is this slot's."""


def open_outputs(engine: TensorRtEngine, context: Any) -> list[OpenOutput]:
    """Those of a context that knows the shapes of its inputs; it asks them from now on. Keep them as long as it."""
    found: list[OpenOutput] = []
    for at, tensor in enumerate(engine.outputs):
        if DYNAMIC in tuple(context.get_tensor_shape(tensor.name)):
            found.append(_allocator(engine.trt, at))
            context.set_output_allocator(tensor.name, found[-1])
    return found


def _allocator(trt: Any, number: int) -> OpenOutput:
    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.at = number
            self.shape: tuple[int, ...] = ()
            self.error: EngineError | None = None
            self._slot: GpuSlot | None = None

        def begin(self, slot: GpuSlot) -> None:
            self._slot, self.shape, self.error = slot, (), None

        def reallocate_output_async(
            self, tensor_name: str, memory: int, size: int, alignment: int, stream: int
        ) -> int | None:
            assert self._slot is not None
            try:
                return self._slot.grow(self.at, size)
            except EngineError as error:  # TensorRT knows no exceptions, and fails without memory
                self.error = error
                return None

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self.shape = tuple(shape)

    made: OpenOutput = Allocator()
    return made
