"""CUDA graphs of one context: what it runs for a usual batch in a slot, captured once and replayed from then on."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from engines.errors import CaptureRefused, DeviceLost, EngineError
from engines.runtime.buckets import Batch, Shapes
from engines.runtime.driver import Driver, give_back
from engines.runtime.tensorrt_slot import GpuSlot

__all__ = ["Graph", "Graphs"]

log = logging.getLogger(__name__)


class Graph(NamedTuple):
    """`outputs`: the shapes of what it computes."""

    handle: int
    outputs: tuple[tuple[int, ...], ...]


class Graphs:
    """By the shapes of a batch and the number of its slot. For one thread, and one place of scratch memory."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._graphs: dict[tuple[Shapes, int], Graph] = {}
        self._refused: set[Shapes] = set()

    def of(self, slot: GpuSlot) -> Graph | None:
        """That of the slot's batch."""
        return self._graphs.get((slot.batch.shapes, slot.number))

    def lacks(self, slot: GpuSlot) -> bool:
        """Whether the slot's batch is worth a graph, could have one, and has none."""
        batch = slot.batch
        return batch.is_usual and batch.shapes not in self._refused and (batch.shapes, slot.number) not in self._graphs

    def capture(self, slot: GpuSlot, stream: int, run: Callable[[], Any], outputs: tuple[tuple[int, ...], ...]) -> None:
        """What `run` puts into the stream, instead of running it. Where that fails, the batch runs without.

        Raises DeviceLost.
        """
        batch = slot.batch
        try:
            handle = self._captured(stream, run)
        except DeviceLost:
            raise
        except EngineError as error:
            self.refuse(batch, error)
        else:
            self._graphs[batch.shapes, slot.number] = Graph(handle, outputs)

    def refuse(self, batch: Batch, error: EngineError) -> None:
        """Batches of these shapes run without a graph."""
        log.info("batches of %s run without a CUDA graph: %s", list(batch.shapes), error)
        self._refused.add(batch.shapes)

    def _captured(self, stream: int, run: Callable[[], Any]) -> int:
        driver = self._driver
        driver.begin_capture(stream)
        try:
            run()
        except BaseException:
            self._end_failed(stream)
            raise
        return driver.end_capture(stream)

    def _end_failed(self, stream: int) -> None:
        """The stream runs again what is put into it."""
        with contextlib.suppress(CaptureRefused, DeviceLost):
            self._driver.close_graph(self._driver.end_capture(stream))

    def drop(self) -> None:
        """All of them: what runs of them ends by itself."""
        for graph in self._graphs.values():
            give_back(self._driver.close_graph, graph.handle)
        self._graphs.clear()
        self._refused.clear()
