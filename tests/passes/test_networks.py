"""Whole networks through all passes: answers as before, different for different inputs, and an engine that agrees."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from engines.agreement import first_difference
from engines.canonical import canonical
from engines.graphs import all_nodes, opset_of
from engines.reference import Arrays, Reference
from engines.report import PassChange
from engines.targets import openvino as target
from engines.verify import agreement_bound
from tests.passes.answers import assert_same_answers, operators, rows_of
from tests.passes.networks import CNNS, encoder, light, recurrent

FOLDS = {"densenet121": 59, "inception_v2": 69, "resnet50": 53, "shufflenet": 49}


def in_the_canonical_form(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, PassChange]]:
    after, changes = canonical(model)
    assert opset_of(after) == 21
    assert "Constant" not in operators(after)
    assert not after.functions
    names = [node.name for node in all_nodes(after.graph)]
    assert all(names)
    assert len(set(names)) == len(names)
    return after, {change.name: change for change in changes}


def the_engine_agrees(model: onnx.ModelProto, after: onnx.ModelProto, rows: list[Arrays]) -> None:
    run = target.runner(
        target.compile_model(target.read_model(after), 1, 2), [value.name for value in after.graph.output]
    )
    assert first_difference(run, Reference(model), rows, agreement_bound(model)) == ""


@pytest.mark.parametrize("name", CNNS)
def test_cnns_of_the_onnx_package(name: str) -> None:
    model = light(name)
    after, changes = in_the_canonical_form(model)
    assert changes["fold batch norm"].removed == ({"BatchNormalization": FOLDS[name]} if name in FOLDS else {})
    assert not any(change.note for change in changes.values() if change.name != "fold batch norm")
    counts = [operators(one).count("BatchNormalization") for one in (model, after)]
    assert counts[0] - counts[1] == FOLDS.get(name, 0)
    rows = rows_of(model)
    assert_same_answers(model, after, rows=rows)
    if name not in ("squeezenet", "vgg19"):  # whose answers are decided by rounding; which takes long
        the_engine_agrees(model, after, rows)


@pytest.mark.parametrize("opset", [7, 11, 14, 22])
@pytest.mark.parametrize("op_type", ["LSTM", "GRU", "RNN"])
def test_recurrent_networks(op_type: str, opset: int) -> None:
    """Bidirectional, two layers, of variable length: compared at lengths that the passes have not seen."""
    model = recurrent(op_type, opset=opset)
    after, changes = in_the_canonical_form(model)
    assert not any(change.note for change in changes.values())
    for size in (1, 5, 12):
        assert_same_answers(model, after, size=size)
        the_engine_agrees(model, after, rows_of(model, size))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_directions_and_lengths(direction: str) -> None:
    model = recurrent("LSTM", direction, layers=3, with_lengths=True)
    after, _ = in_the_canonical_form(model)
    rng = np.random.default_rng(0)
    rows = [
        {"x": rng.standard_normal((6, 4, 3), dtype=np.float32), "lengths": np.array(lengths, np.int32)}
        for lengths in ([6, 1, 3, 2], [1, 2, 6, 6])
    ]
    assert_same_answers(model, after, rows=rows)


@pytest.mark.parametrize("opset", [9, 12, 13, 18, 23])
def test_a_transformer_encoder(opset: int) -> None:
    model = encoder(opset=opset)
    after, changes = in_the_canonical_form(model)
    assert not any(change.note for change in changes.values())
    for size in (2, 9):
        rng = np.random.default_rng(size)
        rows = [{"x": rng.integers(0, 50, (2, size))} for _ in range(2)]
        assert_same_answers(model, after, rows=rows)
        the_engine_agrees(model, after, rows)
