"""The buffers of one batch on a GPU: pinned memory that rows are written into and read from, with a twin of each on the
device, and the events that order what happens to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np

from engines.errors import EngineFailed
from engines.runtime.buckets import Batch, Batches
from engines.runtime.driver import Driver, give_back, held_by
from engines.runtime.session import Done, run_launched
from engines.runtime.tensorrt_engine import Tensor

__all__ = ["Buffer", "Events", "GpuSlot"]

_FEWEST_BYTES = 16
"""What is allocated of tensors without an element: no address is 0."""


class Buffer(NamedTuple):
    """Memory of the host and of the device, as large."""

    host: np.ndarray
    device: int


class Events(NamedTuple):
    """What has happened to a slot's batch: its inputs are on the device (`copied`), the engine has read them
    (`consumed`), has computed (`computed`), and the outputs are on the host (`finished`).
    """

    copied: int
    consumed: int
    computed: int
    finished: int


class GpuSlot:
    """`engines.runtime.session.Slot` of an instance. Everything but `bind`, `launch`, `run` and `outputs` is for the
    instance's own threads.
    """

    def __init__(
        self, number: int, driver: Driver, batches: Batches, inputs: Sequence[Tensor], outputs: Sequence[Tensor],
        input_bytes: Sequence[int], output_bytes: Sequence[int], submit: Callable[[GpuSlot, Done], None],
        lanes: tuple[int, ...] = (), *, fills: bool = False,
    ) -> None:  # fmt: skip
        """`fills`: rows that nobody asked for are looked at, too, and are made like one of those.

        Raises OutOfMemory; then nothing is held.
        """
        self.number, self.lanes, self._fills = number, lanes, fills
        self._driver, self._batches, self._submit = driver, batches, submit
        self.inputs, self.outputs_of = tuple(inputs), tuple(outputs)
        self._held = ExitStack()
        self.input_buffers: list[Buffer] = []
        self.output_buffers: list[Buffer] = []
        with self._held:
            self.events = Events(*(held_by(self._held, driver.event, driver.close_event) for _ in Events._fields))
            self._held.callback(self._free_buffers)
            for size in input_bytes:
                self.input_buffers.append(self._buffer(size))
            for size in output_bytes:
                self.output_buffers.append(self._buffer(size))
            self._held = self._held.pop_all()
        self.batch: Batch
        self._names = [tensor.name for tensor in inputs]
        self.answers: dict[str, np.ndarray] = {}

    def close(self) -> None:
        """Nothing of it may be in a stream."""
        self.answers = {}
        self._held.close()

    # -- Slot ----------------------------------------------------------------------------------------------------

    def bind(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        """Raises OutsidePlan where no profile of the plan holds them."""
        batch = self.batch = self._batches.of(tuple([shapes[name] for name in self._names]))
        return {
            tensor.name: _rows(tensor, np.ndarray(shape, tensor.dtype, buffer.host), batch.rows)
            for tensor, shape, buffer in zip(self.inputs, batch.shapes, self.input_buffers, strict=True)
        }

    def launch(self, done: Done) -> None:
        self._submit(self, done)

    def run(self) -> BaseException | None:
        return run_launched(self)

    def outputs(self) -> dict[str, np.ndarray]:
        return self.answers

    # -- for the instance ----------------------------------------------------------------------------------------

    def copied_bytes(self) -> list[int]:
        """Of each input: only rows that were asked for, where they lie together, unless the others are looked at."""
        if self._fills and 0 < self.batch.rows < self.batch.bucket:
            return self._filled()
        return [
            _asked_bytes(tensor, shape, self.batch)
            for tensor, shape in zip(self.inputs, self.batch.shapes, strict=True)
        ]

    def _filled(self) -> list[int]:
        batch, sizes = self.batch, []
        for tensor, shape, buffer in zip(self.inputs, batch.shapes, self.input_buffers, strict=True):
            array = np.ndarray(shape, tensor.dtype, buffer.host)
            if tensor.batch_axis is not None:
                rows = np.moveaxis(array, tensor.batch_axis, 0)
                rows[batch.rows :] = rows[:1]
            sizes.append(array.nbytes)
        return sizes

    def answer_bytes(self, shapes: Sequence[tuple[int, ...]]) -> list[int]:
        """The same of outputs of these shapes."""
        return [_asked_bytes(tensor, shape, self.batch) for tensor, shape in zip(self.outputs_of, shapes, strict=True)]

    def grow(self, at: int, size_bytes: int) -> int:
        """Let an output be of so many bytes at least; its address. What lay there is lost. OutOfMemory, and it is as it
        was.
        """
        if self.output_buffers[at].host.nbytes < size_bytes:
            larger = self._buffer(size_bytes)
            self._free(self.output_buffers[at])
            self.output_buffers[at] = larger
        return self.output_buffers[at].device

    def view(self, at: int, shape: tuple[int, ...]) -> np.ndarray:
        """An output as the one who waits for it shall see it."""
        tensor, memory = self.outputs_of[at], self.output_buffers[at].host
        if tensor.bytes_of(shape) > memory.nbytes:
            raise EngineFailed(f"output {tensor.name!r} has shape {list(shape)}, more than its plan said")
        return _rows(tensor, np.ndarray(shape, tensor.dtype, memory), self.batch.rows)

    def _buffer(self, size_bytes: int) -> Buffer:
        driver, size = self._driver, max(size_bytes, _FEWEST_BYTES)
        host = driver.pinned(size)
        try:
            return Buffer(host, driver.allocate(size))
        except BaseException:
            give_back(driver.unpin, host)
            raise

    def _free_buffers(self) -> None:
        for buffer in (*self.input_buffers, *self.output_buffers):
            self._free(buffer)
        self.input_buffers, self.output_buffers = [], []

    def _free(self, buffer: Buffer) -> None:
        give_back(self._driver.free, buffer.device)
        give_back(self._driver.unpin, buffer.host)


def _rows(tensor: Tensor, array: np.ndarray, rows: int) -> np.ndarray:
    """The first rows of a bucket's."""
    axis = tensor.batch_axis
    if axis is None or array.shape[axis] == rows:
        return array
    return array[(slice(None),) * axis + (slice(rows),)]


def _asked_bytes(tensor: Tensor, shape: Sequence[int], batch: Batch) -> int:
    whole = tensor.bytes_of(shape)
    return whole * batch.rows // batch.bucket if tensor.batch_axis == 0 and batch.bucket else whole
