"""The CUDA driver of one GPU, as far as the runtime uses it, and what it can go wrong with.

Streams, events, graphs and addresses are the driver's own handles, as whole numbers: TensorRT takes them as such.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from engines.errors import DeviceLost

__all__ = ["Driver", "Memory", "attached", "cleared", "give_back", "held_by", "let_go"]

_What = TypeVar("_What")


def give_back(call: Callable[[_What], None], what: _What) -> None:
    """Free or close something; of a lost device there is nothing left to give back."""
    with contextlib.suppress(DeviceLost):
        call(what)


def held_by(held: contextlib.ExitStack, make: Callable[[], _What], close: Callable[[_What], None]) -> _What:
    """What is made, until `held` is closed."""
    made = make()
    held.callback(give_back, close, made)
    return made


@contextlib.contextmanager
def attached(driver: Driver) -> Iterator[None]:
    """While the calling thread has the device's context current. DeviceLost where it cannot have it."""
    driver.attach()
    try:
        yield
    finally:
        driver.detach()


def let_go(error: BaseException) -> BaseException:
    """The same error without the variables of what has failed: a traceback holds them, and these hold engines and
    contexts, which must go while the device's context is current.
    """
    found: BaseException | None = error
    while found is not None:
        traceback.clear_frames(found.__traceback__)
        found.__traceback__, found = None, found.__cause__ or found.__context__
    return error


@contextlib.contextmanager
def cleared() -> Iterator[None]:
    """What fails within lets go of all it had before anything else happens."""
    try:
        yield
    except BaseException as error:
        raise let_go(error)  # noqa: B904  (it is the same)


class Memory(NamedTuple):
    """Of a GPU, in bytes."""

    free: int
    total: int


class Driver(Protocol):
    """Of one device. All but `attach` need its primary context to be current in the calling thread.

    Raises DeviceLost where nothing can be done on the device any more, in this process; OutOfMemory; CaptureRefused;
    else EngineError with CUDA's name for what went wrong.
    """

    def attach(self) -> None:
        """Make the context current in the calling thread, until `detach`."""

    def detach(self) -> None:
        """Before the thread ends."""

    def memory(self) -> Memory:
        """What is free now, and what there is."""

    def allocate(self, size_bytes: int) -> int:
        """Memory of the device, its address; what lies there is anything."""

    def free(self, address: int) -> None:
        """Once nothing that runs uses it: this waits for the device."""

    def pinned(self, size_bytes: int) -> np.ndarray:
        """Memory of the host that the device copies from and to by itself: uint8 [size], zeros."""

    def unpin(self, array: np.ndarray) -> None:
        """Free what `pinned` gave."""

    def stream(self) -> int:
        """A queue of work, none of which waits for the default stream."""

    def close_stream(self, stream: int) -> None:
        """Once it is empty."""

    def event(self) -> int:
        """A point in a stream; without a time of its own. Who waits for it sleeps."""

    def close_event(self, event: int) -> None: ...

    def copy_in(self, address: int, source: np.ndarray, stream: int) -> None:
        """Put a copy of pinned, contiguous memory to the device into the stream."""

    def copy_out(self, target: np.ndarray, address: int, stream: int) -> None:
        """Put a copy from the device to pinned, contiguous memory into the stream."""

    def record(self, event: int, stream: int) -> None:
        """The event is what the stream has got so far."""

    def wait(self, stream: int, event: int) -> None:
        """What the stream gets from now on begins after what the event was last recorded as, if it ever was."""

    def synchronize(self, event: int) -> None:
        """Sleep until the device has come there."""

    def begin_capture(self, stream: int) -> None:
        """What this thread puts into the stream is not run but kept."""

    def end_capture(self, stream: int) -> int:
        """What was kept, as a graph that can be replayed. CaptureRefused where there was something that cannot be."""

    def replay(self, graph: int, stream: int) -> None:
        """Put all that was kept into the stream, with the addresses it had."""

    def close_graph(self, graph: int) -> None: ...
