"""Rows in, rows out: along any axis, for any choice of outputs, and never to the wrong ticket."""

from __future__ import annotations

import numpy as np
import pytest

from app.serving.batcher import gather, scatter
from app.serving.ticket import Ticket
from engines.tensor import TensorSpec
from tests.support.fakes import HeldSlot, Sink

X = TensorSpec("x", "FP32", (-1, 4), 0)
STATE = TensorSpec("state", "FP32", (2, -1, 3), 1)
LAST = TensorSpec("last", "FP32", (5, -1), 1)
WHOLE = TensorSpec("whole", "FP32", (2, 2), None)


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


def ticket(rows: int, outputs: tuple[str, ...] | None = None, **inputs: np.ndarray) -> Ticket:
    return Ticket(inputs, rows, (), Sink(), outputs=outputs)


def slot() -> HeldSlot:
    return HeldSlot(dict)


def test_rows_of_every_input_go_along_its_own_axis() -> None:
    tickets = [ticket(rows, x=random(rows, rows, 4), state=random(rows, 2, rows, 3)) for rows in (2, 1, 3)]
    one = slot()
    gather(one, tickets, [X, STATE])
    assert np.array_equal(one.inputs["x"], np.concatenate([t.inputs["x"] for t in tickets], axis=0))
    assert np.array_equal(one.inputs["state"], np.concatenate([t.inputs["state"] for t in tickets], axis=1))


def test_one_ticket_is_its_own_batch() -> None:
    one = slot()
    gather(one, [ticket(2, x=random(0, 2, 4))], [X])
    assert np.array_equal(one.inputs["x"], random(0, 2, 4))


def test_without_a_batch_axis_the_array_is_the_batch() -> None:
    one = slot()
    gather(one, [ticket(1, whole=random(0, 2, 2))], [WHOLE])
    assert np.array_equal(one.inputs["whole"], random(0, 2, 2))


def test_inputs_are_copied_once_and_left_alone() -> None:
    mine = random(0, 2, 4)
    one = slot()
    gather(one, [ticket(2, x=mine), ticket(1, x=random(1, 1, 4))], [X])
    one.inputs["x"][:] = 0
    assert np.array_equal(mine, random(0, 2, 4))


def test_every_ticket_gets_its_own_rows_back_along_the_axis_of_each_output() -> None:
    tickets = [ticket(2), ticket(1), ticket(3)]
    outputs = {"x": random(0, 6, 4), "state": random(1, 2, 6, 3), "last": random(2, 5, 6)}
    parts = scatter(outputs, tickets, [X, STATE, LAST])
    start = 0
    for part, rows in zip(parts, (2, 1, 3), strict=True):
        assert np.array_equal(part["x"], outputs["x"][start : start + rows])
        assert np.array_equal(part["state"], outputs["state"][:, start : start + rows])
        assert np.array_equal(part["last"], outputs["last"][:, start : start + rows])
        start += rows


def test_parts_are_views_and_not_copies() -> None:
    outputs = {"x": random(0, 2, 4)}
    assert all(np.shares_memory(part["x"], outputs["x"]) for part in scatter(outputs, [ticket(1), ticket(1)], [X]))


def test_every_ticket_gets_only_the_outputs_it_asked_for() -> None:
    tickets = [ticket(1, ("x",)), ticket(1, ("state",)), ticket(1, ()), ticket(1)]
    parts = scatter({"x": random(0, 4, 4), "state": random(0, 2, 4, 3)}, tickets, [X, STATE])
    assert [set(part) for part in parts] == [{"x"}, {"state"}, set(), {"x", "state"}]


def test_an_output_without_a_batch_axis_is_given_whole() -> None:
    (part,) = scatter({"whole": random(0, 2, 2)}, [ticket(1)], [WHOLE])
    assert np.array_equal(part["whole"], random(0, 2, 2))


@pytest.mark.parametrize("rows", [1, 2, 4], ids=["one", "fewer", "more"])
def test_a_wrong_number_of_output_rows_is_an_error_even_if_nobody_asked(rows: int) -> None:
    tickets = [ticket(2, ("x",)), ticket(1, ("x",))]
    with pytest.raises(ValueError, match=rf"output 'state' has shape \[2, {rows}, 3\] for a batch of 3 rows"):
        scatter({"x": random(0, 3, 4), "state": random(0, 2, rows, 3)}, tickets, [X, STATE])
