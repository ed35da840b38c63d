"""Lengths of recurrent layers, written out: the same answers in ONNX Runtime, and right ones in the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.graphs import all_nodes
from engines.guarded import fired, first_difference
from engines.passes.guards import with_guards
from engines.passes.sequence_lens import has_lengths, with_lengths_written_out
from engines.reference import Arrays, Reference
from engines.targets import openvino as target
from engines.verify import agreement_bound
from tests.passes.answers import assert_same_answers, operators
from tests.support.onnx_models import FLOAT, build

FEATURES, HIDDEN = 3, 4
GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
DIRECTIONS = ("forward", "reverse", "bidirectional")
RNG = np.random.default_rng(0)
LENGTHS = ([5, 0, 2, 1, 4], [0, 5, 5, 3, 1])


def layer(
    op_type: str, direction: str = "forward", outputs: Sequence[str] = (), *, opset: int = 21, steps: int | str = "T",
    lengths: Sequence[int] = (), **attributes: Any,
) -> onnx.ModelProto:  # fmt: skip
    """x [T, N, 3] through one layer that begins in given states; `lengths` are an input where there are none here."""
    ways, width = 2 if direction == "bidirectional" else 1, GATES[op_type] * HIDDEN
    made = ["Y", "Y_h", "Y_c"][: 3 if op_type == "LSTM" else 2]
    states = ["h0", "c0"] if op_type == "LSTM" else ["h0"]
    node = helper.make_node(
        op_type, ["x", "W", "R", "B", "lengths", *states], [name if name in (outputs or made) else "" for name in made],
        name="layer", hidden_size=HIDDEN, direction=direction, **attributes,
    )  # fmt: skip
    stored = {
        "W": RNG.standard_normal((ways, width, FEATURES), dtype=np.float32),
        "R": RNG.standard_normal((ways, width, HIDDEN), dtype=np.float32) * np.float32(0.5),
        "B": RNG.standard_normal((ways, 2 * width), dtype=np.float32) * np.float32(0.3),
    }
    inputs: dict[str, tuple[int, list[int | str]]] = {"x": (FLOAT, [steps, "N", FEATURES])}
    inputs |= {name: (FLOAT, [ways, "N", HIDDEN]) for name in states}
    if lengths:
        stored["lengths"] = np.array(lengths, np.int32)
    else:
        inputs["lengths"] = (TensorProto.INT32, ["N"])
    shapes = {"Y": [steps, ways, "N", HIDDEN], "Y_h": [ways, "N", HIDDEN], "Y_c": [ways, "N", HIDDEN]}
    return build([node], inputs, {name: (FLOAT, shapes[name]) for name in outputs or made}, stored, opset)


def rows(model: onnx.ModelProto, lengths: Sequence[Sequence[int]] = LENGTHS, steps: int = 5) -> list[Arrays]:
    """One batch for each of `lengths`."""
    drawn = []
    for each in lengths:
        sizes, row = {"T": steps, "N": len(each)}, {}
        for value in model.graph.input:
            shape = [sizes.get(dim.dim_param, dim.dim_value) for dim in value.type.tensor_type.shape.dim]
            is_float = value.type.tensor_type.elem_type == FLOAT
            row[value.name] = RNG.standard_normal(shape, dtype=np.float32) if is_float else np.array(each, np.int32)
        drawn.append(row)
    return drawn


def engine(model: onnx.ModelProto) -> target.runner:
    """As a server has it."""
    compiled = target.compile_model(target.read_model(model), 1, 2)
    return target.runner(target.reimported(target.export(compiled), 1, 2), [v.name for v in model.graph.output])


def the_engine_agrees(model: onnx.ModelProto, samples: Sequence[Arrays]) -> None:
    run = engine(model)
    assert first_difference(run, Reference(model), samples, agreement_bound(model)) == ""
    assert not any(fired(run.watched(sample)) for sample in samples)


def written_out(model: onnx.ModelProto) -> onnx.ModelProto:
    after = with_lengths_written_out(model)
    assert not any(map(has_lengths, all_nodes(after.graph)))
    return after


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op_type", ["GRU", "LSTM", "RNN"])
def test_every_output_of_every_layer(op_type: str, direction: str) -> None:
    model = layer(op_type, direction)
    assert_same_answers(model, written_out(model), rows=rows(model))
    the_engine_agrees(model, [*rows(model), *rows(model, [[1], [0]], steps=1), *rows(model, [[300, 7, 0]], steps=300)])


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [
        ("GRU", {"linear_before_reset": 1, "clip": 0.3}),
        ("GRU", {"activations": ["Sigmoid", "Relu", "Sigmoid", "Tanh"]}),
        ("LSTM", {"activations": ["Sigmoid", "Tanh", "Relu"] * 2}),
        ("LSTM", {"clip": 0.3, "outputs": ["Y", "Y_h"]}),
        ("RNN", {"activations": ["Relu", "Tanh"]}),
    ],
)
def test_attributes_are_kept(op_type: str, attributes: dict[str, Any]) -> None:
    model = layer(op_type, "bidirectional", **attributes)
    assert_same_answers(model, written_out(model), rows=rows(model))
    the_engine_agrees(model, rows(model))


@pytest.mark.parametrize("outputs", [["Y"], ["Y_h"], ["Y_c"]])
def test_one_output_alone(outputs: list[str]) -> None:
    model = layer("LSTM", "bidirectional", outputs)
    assert_same_answers(model, written_out(model), rows=rows(model))
    the_engine_agrees(model, rows(model))


@pytest.mark.parametrize("attributes", [{"input_forget": 1}, {"P": True}])
def test_what_the_engine_does_not_have_is_kept_too(attributes: dict[str, Any]) -> None:
    model = layer("LSTM", "bidirectional", **{k: v for k, v in attributes.items() if k != "P"})
    if "P" in attributes:
        model.graph.node[0].input.append("P")
        peepholes = RNG.standard_normal((2, 3 * HIDDEN), dtype=np.float32)
        model.graph.initializer.append(numpy_helper.from_array(peepholes, "P"))
    assert_same_answers(model, written_out(model), rows=rows(model))


@pytest.mark.parametrize("op_type", ["GRU", "LSTM"])
def test_what_stands_behind_the_end_is_not_read(op_type: str) -> None:
    model = layer(op_type, "bidirectional")
    (row,) = rows(model, [[5, 0, 2, 1, 4]])
    spoilt = {**row, "x": row["x"].copy()}
    for sequence, length in enumerate(row["lengths"]):
        spoilt["x"][length:, sequence] = np.nan
    run = engine(model)
    want, got = run(row), run(spoilt)
    assert all(np.array_equal(want[name], got[name]) for name in want)


@pytest.mark.parametrize("lengths", [[6, 1, 1, 1, 1], [1, 1, -1, 1, 1], [2**31 - 1, -(2**31), 0, 0, 0]])
def test_lengths_that_no_sequence_has_are_refused(lengths: list[int]) -> None:
    model = layer("LSTM")
    (row,) = rows(model, [[5] * 5])
    row["lengths"] = np.array(lengths, np.int32)
    with pytest.raises(Exception, match=r"sequence_lens"):
        Reference(model)(row)
    assert fired(engine(model).watched(row))


def test_one_length_for_all_is_refused() -> None:
    model = layer("GRU", outputs=["Y"])
    (row,) = rows(model, [[5] * 5])
    row["lengths"] = np.array([3], np.int32)
    with pytest.raises(Exception, match=r"sequence_lens"):
        Reference(model)(row)
    assert fired(engine(model).watched(row))


KEPT = {
    "opset 12 is older": layer("GRU", opset=12),
    "alpha or beta": layer("RNN", "bidirectional", activations=["Elu"] * 2, activation_alpha=[0.1, 0.3]),
    "layout 1": layer("GRU", layout=1),
}


@pytest.mark.parametrize("reason", KEPT)
def test_a_layer_that_is_kept_says_why(reason: str) -> None:
    model = KEPT[reason]
    assert any(map(has_lengths, all_nodes(with_lengths_written_out(model).graph)))
    _, said = with_guards(model)
    assert len(said) == 1
    assert "ends a sequence before its last step" in said[0]
    assert reason in said[0]


def test_a_layer_that_is_kept_answers_whole_sequences_alone() -> None:
    model = KEPT["opset 12 is older"]
    whole, ended = rows(model, [[5] * 5, [5, 5, 4, 5, 5]])
    the_engine_agrees(model, [whole])
    assert fired(engine(model).watched(ended))


@pytest.mark.parametrize("attributes", [{"clip": 0.3}, {"activations": ["Relu", "Tanh", "Tanh"]}])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_engine_heeds_lengths_where_it_runs_step_by_step(direction: str, attributes: dict[str, Any]) -> None:
    model = layer("LSTM", direction, **attributes)
    assert any(map(has_lengths, all_nodes(with_lengths_written_out(model).graph)))
    the_engine_agrees(model, rows(model))
    (row,) = rows(model, [[3, 6, 1, -1, 0]])
    assert fired(engine(model).watched(row))


def test_a_last_cell_that_nobody_reads_is_no_reason() -> None:
    model = layer("LSTM", outputs=["Y"], clip=0.3)
    model.graph.node[0].output[2] = "unread"
    the_engine_agrees(model, rows(model))


def test_stored_lengths() -> None:
    """Of all steps: nothing is left of them, and nothing is guarded. Of fewer: they count."""
    whole, ended = (layer("GRU", steps=5, lengths=lengths) for lengths in ([5, 5, 5], [3, 5, 1]))
    guarded, said = with_guards(whole)
    assert not any("length" in text for text in said)
    assert "Where" not in operators(with_lengths_written_out(guarded))
    for model in (whole, ended):
        the_engine_agrees(model, rows(model, [[0] * 3] * 2))


def test_layers_in_branches() -> None:
    model = layer("LSTM", "reverse", ["Y"])
    branches = []
    for direction in ("reverse", "forward"):
        (node,) = layer("LSTM", direction, ["Y"]).graph.node
        node.name = node.output[0] = f"{direction}_y"
        output = helper.make_tensor_value_info(node.output[0], FLOAT, ["T", 1, "N", HIDDEN])
        branches.append(helper.make_graph([node], direction, [], [output]))
    choice = helper.make_node("If", ["backwards"], ["Y"], then_branch=branches[0], else_branch=branches[1])
    model.graph.node[0].CopyFrom(choice)
    model.graph.input.append(helper.make_tensor_value_info("backwards", TensorProto.BOOL, []))
    samples = [{**row, "backwards": np.array(i == 0)} for i, row in enumerate(rows(model, LENGTHS))]
    assert_same_answers(model, written_out(model), rows=samples)
    the_engine_agrees(model, samples)


def test_a_model_without_lengths_is_left_alone() -> None:
    model = layer("LSTM")
    model.graph.node[0].input[4] = ""
    assert with_lengths_written_out(model) is model
