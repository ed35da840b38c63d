"""Forms of recurrent layers that runtimes refuse or pass over without a word: rewritten, and answered as ONNX says."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from engines.passes.couple_gates import couple_gates
from engines.passes.time_first import time_first
from engines.reference import Reference
from tests.support.onnx_models import FLOAT, build

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
ROWS, STEPS, WIDTH, HIDDEN = 2, 5, 3, 4
ROUNDING = STEPS * 8 * float(np.finfo(np.float32).eps) * 16
"""Each step rounds a sum of 8 products of magnitude about 16 at most, and sigmoids do not make errors larger."""


def layer(
    op_type: str, ways: int = 1, *, states: bool = True, peepholes: bool = False, **attributes: Any
) -> onnx.ModelProto:
    """One layer with all its outputs, on x and its first states."""
    rng = np.random.default_rng(7)
    gates, first = GATES[op_type] * HIDDEN, attributes.get("layout", 0) == 1
    stored = {
        "W": rng.standard_normal((ways, gates, WIDTH), dtype=np.float32),
        "R": rng.standard_normal((ways, gates, HIDDEN), dtype=np.float32),
        "B": rng.standard_normal((ways, 2 * gates), dtype=np.float32),
        "P": rng.standard_normal((ways, 3 * HIDDEN), dtype=np.float32),
    }
    if not peepholes:
        del stored["P"]
    state: list[int | str] = [ROWS, ways, HIDDEN] if first else [ways, ROWS, HIDDEN]
    inputs: dict[str, tuple[int, list[int | str]]] = {
        "x": (FLOAT, [ROWS, STEPS, WIDTH] if first else [STEPS, ROWS, WIDTH])
    }
    reads = ["x", "W", "R", "B", ""]
    outputs = {"Y": (FLOAT, [None] * 4), "Y_h": (FLOAT, [None] * 3)}
    if op_type == "LSTM":
        outputs["Y_c"] = (FLOAT, [None] * 3)
    if states:
        inputs["h"] = (FLOAT, state)
        reads.append("h")
        if op_type == "LSTM":
            inputs["c"] = (FLOAT, state)
            reads.append("c")
    if peepholes:
        reads += [""] * (7 - len(reads)) + ["P"]
    direction = "bidirectional" if ways == 2 else "forward"
    nodes = [
        helper.make_node(
            op_type, reads, list(outputs), name="memory", hidden_size=HIDDEN, direction=direction, **attributes
        )
    ]
    return build(nodes, inputs, outputs, stored, 21)


def given(model: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in model.graph.input}
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def by_onnx(model: onnx.ModelProto, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = ReferenceEvaluator(model).run(None, arrays)
    return dict(zip([value.name for value in model.graph.output], found, strict=True))


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.shape == other[name].shape, name
        np.testing.assert_allclose(array, other[name], rtol=0, atol=ROUNDING, err_msg=name)


@pytest.mark.parametrize("states", [True, False])
@pytest.mark.parametrize("op_type", GATES)
def test_rows_first_is_answered_as_onnx_says(op_type: str, *, states: bool) -> None:
    """By ONNX's own evaluator, which knows layout 1; ONNX Runtime does not."""
    model = layer(op_type, states=states, layout=1)
    turned, note = time_first(model)
    assert note == "1 recurrent layers had their rows first"
    assert not any(a.name == "layout" for node in turned.graph.node for a in node.attribute)
    arrays = given(model)
    answers = Reference(turned)(arrays)
    assert answers["Y"].shape == (ROWS, STEPS, 1, HIDDEN)
    assert_same(answers, _numbers(op_type, arrays))


def _numbers(op_type: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same layer with the time first, evaluated by ONNX, and its axes moved by hand."""
    plain = layer(op_type, states="h" in arrays)
    moved = {name: np.swapaxes(array, 0, 1) for name, array in arrays.items()}
    found = by_onnx(plain, moved)
    return {
        name: array.transpose(2, 0, 1, 3) if name == "Y" else np.swapaxes(array, 0, 1) for name, array in found.items()
    }


def test_a_model_with_the_time_first_is_left_as_it_is() -> None:
    model = layer("GRU")
    assert time_first(model)[0] is model


def test_layers_in_bodies_are_turned_too() -> None:
    body = layer("GRU", states=False, layout=1).graph
    other = layer("GRU", states=False, layout=1).graph
    for graph, sign in ((body, "then"), (other, "else")):
        del graph.input[:]
        graph.name = sign
    nodes = [helper.make_node("If", ["which"], ["Y", "Y_h"], name="choice", then_branch=body, else_branch=other)]
    inputs: Any = {"which": (onnx.TensorProto.BOOL, []), "x": (FLOAT, [ROWS, STEPS, WIDTH])}
    model = build(nodes, inputs, {"Y": (FLOAT, [None] * 4), "Y_h": (FLOAT, [None] * 3)}, {}, 21)
    turned, note = time_first(model)
    assert note == "2 recurrent layers had their rows first"
    arrays = {"x": given(layer("GRU", states=False, layout=1))["x"]}
    answers = Reference(turned)({**arrays, "which": np.array(True)})
    assert answers.keys() == {"Y", "Y_h"}
    assert_same(answers, _numbers("GRU", arrays))


@pytest.mark.parametrize("peepholes", [False, True])
@pytest.mark.parametrize("ways", [1, 2])
@pytest.mark.parametrize("clip", [None, 1.5])
def test_coupled_gates_get_weights_that_say_the_same(ways: int, clip: float | None, *, peepholes: bool) -> None:
    """By ONNX Runtime, which knows the attribute; of the layer with weights of its own it is told nothing."""
    further = {} if clip is None else {"clip": clip}
    model = layer("LSTM", ways, peepholes=peepholes, input_forget=1, **further)
    free, note = couple_gates(model)
    assert note == ""
    assert not any(a.name == "input_forget" for node in free.graph.node for a in node.attribute)
    plain = layer("LSTM", ways, peepholes=peepholes, **further)
    arrays = given(model)
    assert_same(Reference(free)(arrays), Reference(model)(arrays))
    assert np.abs(Reference(plain)(arrays)["Y"] - Reference(model)(arrays)["Y"]).max() > 0.05, "it means something"


def test_gates_that_are_no_sigmoids_stay_coupled_and_are_named() -> None:
    model = layer("LSTM", input_forget=1, activations=["HardSigmoid", "Tanh", "Tanh"])
    same, note = couple_gates(model)
    assert note == "memory is left: its gates are no sigmoids"
    assert any(a.name == "input_forget" for node in same.graph.node for a in node.attribute)


def test_computed_weights_stay_coupled_and_are_named() -> None:
    model = layer("LSTM", input_forget=1)
    model.graph.node.insert(0, helper.make_node("Neg", ["W"], ["negated"]))
    model.graph.node[1].input[1] = "negated"
    assert couple_gates(model)[1] == "memory is left: its weights are computed"
