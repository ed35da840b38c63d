"""What goes wrong on a simulated GPU."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Faults"]


@dataclass
class Faults:
    """`lost_at`: the number of the call, from 1 on, at which the device is lost; 0 = never."""

    lost_at: int = 0
    lost_file: str = ""
    """It is lost once there is a file of this name: as many calls later as it says, at once where it is empty."""
    hang_file: str = ""
    """As long as there is a file of this name, no work that is in a stream goes on."""
    most_waiting: int = 1000
    """Operations in a stream: who puts more into it waits until one has ended."""
    full_at: int = 0
    """The number of the allocation, from 1 on, for which there is no memory; 0 = none."""
    full_from: int = 0
    """From which on there is none for any."""
    fail_runs: frozenset[int] = frozenset()
    """The numbers of runs of TensorRT, from 1 on, that end before their computation is in the stream."""
    refuse_captures: bool = False
    refuse_graphs: bool = False
    """What was captured cannot be made a graph."""
    most_bytes: int = 2**34
    slowest_s: float = 0.0002
    """An operation takes up to so long, at random."""
