"""What the checks of binary layers on GPUs run on: a GPU, or this processor in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NoReturn, Protocol

import numpy as np
import pytest

from engines.hardware import gpus
from engines.plugins.gpu.driver import Driver

__all__ = ["Executor", "Machine", "NoMachine", "NoUnits", "Replay", "skip_or_fail"]

Replay = Callable[[], None]
"""Does again, into the stream, what was captured."""


class NoMachine(Exception):
    """There is no such machine here, or nothing on it that could run a graph; the text says why."""


class NoUnits(NoMachine):
    """The GPU that is here cannot do it."""


def skip_or_fail(why: NoMachine) -> NoReturn:
    """What a GPU is here for is not passed over for want of a package."""
    if gpus() and not isinstance(why, NoUnits):
        pytest.fail(f"there is a GPU, and it is not used: {why}")
    pytest.skip(str(why))


class Executor(Protocol):
    """A graph ready to run, its inputs and outputs at fixed places of the machine's memory."""

    is_capturable: bool
    """Whether all that `enqueue` does is put into the stream."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name."""

    def resize(self, rows: int) -> None:
        """Of all inputs; up to those that lay there to begin with."""

    def enqueue(self) -> None:
        """Run once more on what lies in the inputs, into the machine's stream."""

    def replayed(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As `run`, but that what reaches the device was captured before the inputs were there."""


class Machine(Protocol):
    """A device and its memory; one stream, in which all is run. Used by one thread."""

    @property
    def driver(self) -> Driver: ...

    @property
    def stream(self) -> int: ...

    @property
    def modules(self) -> list[str]:
        """What is loaded."""

    def cubin(self, source: str, sm: int) -> bytes:
        """What the driver loads for one of the kernels' sources."""

    def lend(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> AbstractContextManager[list[int]]:
        """Addresses in its memory, of copies of the inputs and of places for the outputs, which are filled with
        bytes of 0xCD. In the end the outputs hold what was written there, and the memory is given back.
        """

    def write(self, address: int, array: np.ndarray) -> None:
        """Copy an array to a place that is lent, once all is done that the stream has."""

    def read(self, address: int, array: np.ndarray) -> None:
        """Fill an array from there, once all is done that the stream has."""

    def captured(self, run: Callable[[], None]) -> AbstractContextManager[Replay]:
        """What `run` puts into the stream, which is not run now. Raises EngineError where it does anything else."""

    def elapsed_us(self, run: Callable[[], None], times: int) -> float:
        """Of one run in the stream, the mean of so many in a row."""

    def used_bytes(self) -> int:
        """Of the device's memory, by whomever."""
