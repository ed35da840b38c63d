"""Rows into a slot and out again. Whose rows are whose is decided here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from app.serving.ticket import Ticket
from engines.runtime.session import Slot
from engines.tensor import TensorSpec

__all__ = ["gather", "scatter"]


def gather(slot: Slot, tickets: Sequence[Ticket], inputs: Sequence[TensorSpec]) -> None:
    """Copy every ticket's rows into the slot's input buffers, in the order of `tickets`.

    Without a batch axis there is one ticket, and its arrays are the batch.
    """
    first = tickets[0].inputs
    if len(tickets) == 1:
        for name, view in slot.bind({spec.name: first[spec.name].shape for spec in inputs}).items():
            np.copyto(view, first[name])
        return
    rows = sum(ticket.rows for ticket in tickets)
    shapes = {spec.name: _with_rows(first[spec.name].shape, spec.batch_axis, rows) for spec in inputs}
    views = slot.bind(shapes)
    for spec in inputs:
        view = views[spec.name]
        if spec.batch_axis is None:
            np.copyto(view, first[spec.name])
            continue
        start = 0
        for ticket in tickets:
            np.copyto(_rows(view, spec.batch_axis, start, ticket.rows), ticket.inputs[spec.name])
            start += ticket.rows


def scatter(
    outputs: Mapping[str, np.ndarray], tickets: Sequence[Ticket], specs: Sequence[TensorSpec]
) -> list[dict[str, np.ndarray]]:
    """Views of each ticket's own rows. ValueError where an output has not one row for each row that went in."""
    rows = sum(ticket.rows for ticket in tickets)
    for spec in specs:
        shape = outputs[spec.name].shape
        if spec.batch_axis is not None and shape[spec.batch_axis] != rows:
            raise ValueError(f"output {spec.name!r} has shape {list(shape)} for a batch of {rows} rows")
    parts: list[dict[str, np.ndarray]] = []
    start = 0
    for ticket in tickets:
        parts.append(
            {
                spec.name: outputs[spec.name]
                if spec.batch_axis is None
                else _rows(outputs[spec.name], spec.batch_axis, start, ticket.rows)
                for spec in specs
                if ticket.outputs is None or spec.name in ticket.outputs
            }
        )
        start += ticket.rows
    return parts


def _with_rows(shape: tuple[int, ...], axis: int | None, rows: int) -> tuple[int, ...]:
    return shape if axis is None else (*shape[:axis], rows, *shape[axis + 1 :])


def _rows(array: np.ndarray, axis: int, start: int, count: int) -> np.ndarray:
    """A view of `count` rows along `axis`."""
    return array[(slice(None),) * axis + (slice(start, start + count),)]
