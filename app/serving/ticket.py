"""One request inside serving: its rows, its deadline, and the sink that takes its answer exactly once."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from app.serving.errors import ServingError

__all__ = ["Outcome", "Reply", "ReplySink", "ShapeKey", "State", "Ticket"]

Reply = Mapping[str, np.ndarray] | ServingError
ShapeKey = tuple[tuple[int, ...], ...]
"""Row shapes of all inputs in the model's order: tickets with equal keys may share a batch."""


class ReplySink(Protocol):
    """Where an answer goes. Called on the event loop; must not raise and must not keep the arrays it is given."""

    def send(self, reply: Reply, *, final: bool) -> None:
        """Take outputs (views into the engine's buffers, gone when this returns) or an error."""
        ...


class State(enum.Enum):
    """Where a ticket is. It only moves down this list."""

    QUEUED = "queued"
    RUNNING = "running"
    SETTLED = "settled"


class Outcome(enum.StrEnum):
    """How a request ended; the label of every histogram."""

    SUCCESS = "success"
    REJECTED = "rejected"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Ticket:
    """`inputs` are full arrays with `rows` rows along each batch axis. Times are CLOCK_MONOTONIC nanoseconds.

    `deadline_ns` 0 means none. `sequence_id` is carried for schedulers to come and read by none today.
    """

    __slots__ = (
        "deadline_ns", "enqueued_ns", "inputs", "launched_ns", "level", "outputs", "received_ns", "rows",
        "sequence_id", "shape_key", "sink", "state", "stood_back", "timed_by_sink",
    )  # fmt: skip

    def __init__(
        self,
        inputs: Mapping[str, np.ndarray],
        rows: int,
        shape_key: ShapeKey,
        sink: ReplySink,
        *,
        outputs: tuple[str, ...] | None = None,
        level: int = 0,
        received_ns: int = 0,
        enqueued_ns: int = 0,
        deadline_ns: int = 0,
        sequence_id: int | str = 0,
    ) -> None:
        self.inputs, self.rows, self.shape_key, self.sink = inputs, rows, shape_key, sink
        self.outputs, self.level, self.sequence_id = outputs, level, sequence_id
        self.received_ns, self.enqueued_ns, self.deadline_ns = received_ns, enqueued_ns, deadline_ns
        self.launched_ns = 0
        self.state = State.QUEUED
        self.timed_by_sink = False
        """Whether the sink counts how long an answered request took: its answer has some way to go from here."""
        self.stood_back = False
        """True once its deadline passed under the DELAY policy: it waits behind all live tickets of its level."""

    def settle(self, reply: Reply) -> bool:
        """Answer, unless already answered; True if this call did. Frees the inputs."""
        if self.state is State.SETTLED:
            return False
        self.state = State.SETTLED
        self.inputs = {}
        self.sink.send(reply, final=True)
        return True
