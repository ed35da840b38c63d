"""What a runtime offers the server: sessions whose slots take rows in place and run them asynchronously."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Protocol

import numpy as np

__all__ = ["Done", "Session", "Slot", "divided", "run_launched"]

Done = Callable[[BaseException | None], None]
"""Called once per launch, on any thread: None, or what the engine raised."""


class Slot(Protocol):
    """Input and output buffers of one batch in flight. Used by one batch at a time."""

    @property
    def lanes(self) -> tuple[Hashable, ...]:
        """What it shares with other slots that have the same: a GPU, and the instance whose batches run in turn."""
        ...

    def bind(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        """Give every input its full shape (batch axis included); return writable views to copy rows into."""
        ...

    def launch(self, done: Done) -> None:
        """Start the batch and return at once. `done` is called exactly once, from any thread."""
        ...

    def run(self) -> BaseException | None:
        """Run the batch on the calling thread; None, or what the engine raised."""
        ...

    def outputs(self) -> dict[str, np.ndarray]:
        """Views of the results; valid from `done(None)`, or a run without error, until the next `bind`."""
        ...


class Session(Protocol):
    """An engine ready to run, with as many slots as it can run batches at once."""

    @property
    def slots(self) -> Sequence[Slot]: ...

    @property
    def is_on_gpu(self) -> bool:
        """Whether its batches run on GPUs; else they take threads of the CPU."""
        ...

    @property
    def threads_per_batch(self) -> int:
        """Threads that one running batch occupies; the device's unit of account. On a GPU, a batch is one."""
        ...

    @property
    def memory_bytes(self) -> int:
        """Bytes of weights that the engine holds, as far as known."""
        ...

    @property
    def most_rows(self) -> int:
        """Batches up to so many rows run on what it is a session of: larger ones take far longer. 0 = all do."""
        ...

    inline_rows: int
    """Batches up to so many rows were measured to run faster than they are handed to another thread; 0 = none."""

    @property
    def inline_slot(self) -> Slot | None:
        """The slot that those run on, beside `slots`; None where any of these does."""
        ...

    def open_inline(self) -> Slot:
        """The slot whose `run` takes the least of the machine; made here where there is none."""
        ...

    def close_inline(self) -> None:
        """Free what `open_inline` has made; batches run on `slots` alone."""
        ...

    def close(self) -> None:
        """Free the engine. No launch may be in flight."""
        ...


def run_launched(slot: Slot) -> BaseException | None:
    """`Slot.run` of one whose batches run in other threads: the calling thread waits for them."""
    ended, errors = threading.Event(), list[BaseException | None]()

    def done(error: BaseException | None) -> None:
        errors.append(error)
        ended.set()

    slot.launch(done)
    ended.wait()
    return errors[0]


def divided(streams: int | None, instances: int | None, measured: int) -> tuple[int, int]:
    """(streams, instances) in force of what was asked, None = nothing: one alone is both, and else the measured one is.

    Of more instances than streams, some wait in the engine, filled, for a stream: all share its threads.
    """
    parts = streams or instances or measured
    return parts, instances or parts
