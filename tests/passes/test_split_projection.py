"""Input projections split out of recurrent layers: the same answers in ONNX Runtime and in the engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import onnx
import pytest

from engines.canonical import canonical
from engines.guarded import first_difference
from engines.legality import Verifier
from engines.passes.names import name_nodes
from engines.passes.split_projection import split_projections
from engines.reference import Reference
from engines.verify import agreement_bound
from tests.engines.conftest import Built
from tests.passes.answers import assert_same_answers, operators
from tests.passes.networks import recurrent
from tests.passes.test_sequence_lens import DIRECTIONS, LENGTHS, engine, layer, rows
from tests.support.onnx_models import time_major_lstm

NOTE = "the input projections of 1 recurrent layers are split out; the recurrence stays float"


def without_lengths(
    op_type: str, direction: str, outputs: Sequence[str] = (), *, states: bool = True, **how: Any
) -> onnx.ModelProto:
    model = layer(op_type, direction, outputs, **how)
    (node,) = model.graph.node
    node.input[4] = ""
    gone = {"lengths"} if states else {"lengths", "h0", "c0"}
    if not states:
        del node.input[4:]
    kept = [value for value in model.graph.input if value.name not in gone]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return model


def agrees(model: onnx.ModelProto) -> onnx.ModelProto:
    after, note = split_projections(model)
    assert note == NOTE
    assert {"LSTM", "GRU"}.isdisjoint(operators(after))
    assert operators(after).count("MatMul") == 1
    Verifier(model, Reference(model)).verify_form("split projections", model, after)
    samples = [*rows(model), *rows(model, [[0]], steps=1), *rows(model, [[0] * 3], steps=40)]
    assert_same_answers(model, after, rows=samples)
    assert first_difference(engine(after), Reference(model), samples, agreement_bound(model)) == ""
    return after


@pytest.mark.parametrize("states", [True, False])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [("LSTM", {}), ("GRU", {"linear_before_reset": 0}), ("GRU", {"linear_before_reset": 1})],
)
def test_every_output_of_every_layer(op_type: str, attributes: dict[str, Any], direction: str, states: bool) -> None:
    agrees(without_lengths(op_type, direction, states=states, **attributes))


@pytest.mark.parametrize("outputs", [["Y"], ["Y_h"], ["Y_c"]])
def test_one_output_alone(outputs: list[str]) -> None:
    agrees(without_lengths("LSTM", "bidirectional", outputs))


def test_layers_on_top_of_each_other() -> None:
    model = name_nodes(recurrent("GRU", opset=21))[0]
    after, note = split_projections(model)
    assert "of 2 recurrent layers" in note
    assert_same_answers(model, after)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (layer("GRU"), "sequence_lens"),
        (without_lengths("LSTM", "forward", clip=0.3), "clips"),
        (without_lengths("LSTM", "forward", input_forget=1), "input_forget"),
        (without_lengths("GRU", "forward", activations=["Relu", "Tanh"]), "functions"),
    ],
)
def test_a_layer_that_is_left_says_why(model: onnx.ModelProto, reason: str) -> None:
    after, note = split_projections(model)
    assert after is model
    assert note.startswith("layer is left: ")
    assert reason in note


def test_weights_that_are_not_stored_and_peepholes_are_left() -> None:
    foreign, peeping = without_lengths("GRU", "forward"), without_lengths("LSTM", "forward")
    foreign.graph.node[0].input[2] = "x"
    peeping.graph.node[0].input.append("P")
    assert split_projections(foreign)[1] == "layer is left: R is not stored"
    assert split_projections(peeping)[1] == "layer is left: it has peepholes"


def test_quantization_takes_the_projections_alone() -> None:
    model = without_lengths("LSTM", "bidirectional", ["Y"], states=False)
    after, _ = split_projections(model)
    samples = rows(model, LENGTHS * 4)
    quantized = nncf.quantize(after, nncf.Dataset(samples), preset=nncf.QuantizationPreset.PERFORMANCE)
    made = {name: node for node in quantized.graph.node for name in node.output}
    (product,) = (node for node in quantized.graph.node if node.op_type == "MatMul")
    assert [made[name].op_type for name in product.input] == ["DequantizeLinear"] * 2
    (scan,) = (node for node in quantized.graph.node if node.op_type == "Scan")
    assert all("Dequantize" not in made[name].op_type for name in scan.input)
    (was,) = (node for node in after.graph.node if node.op_type == "Scan")
    bodies = [a.g for node in (was, scan) for a in node.attribute if a.name == "body"]
    assert list(bodies[0].node) == list(bodies[1].node), "the steps are as they were, and so is what they read"
    read = {name for node in bodies[0].node for name in node.input}
    kept = [{t.name: t for t in one.graph.initializer if t.name in read} for one in (after, quantized)]
    assert kept[0] == kept[1]
    assert {"layer.R0", "layer.R1"} <= kept[0].keys()


def test_rows_are_still_proven_independent(tmp_path: Path) -> None:
    model, _ = canonical(time_major_lstm(batch_first=True))
    after, _ = split_projections(model)
    done = Built(tmp_path, after)
    assert done.manifest.proof.batchable, done.manifest.proof.reason
    assert done.axes == {"x": 0, "y": 0}
    rng = np.random.default_rng(1)
    for shape in ((1, 7, 3), (9, 2, 3), (5, 60, 3)):
        batch = {"x": rng.standard_normal(shape, dtype=np.float32)}
        (answer,) = done.answer(batch)
        want = Reference(model)(batch)["y"]
        np.testing.assert_allclose(answer["y"], want, rtol=0, atol=agreement_bound(model) * max(1, np.abs(want).max()))
