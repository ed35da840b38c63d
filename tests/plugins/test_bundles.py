"""What a layer reads of the file lies in one constant; every kind of layer with and without one is in test_packing."""

from __future__ import annotations

import numpy as np
import onnx
import openvino as ov
import pytest
from openvino import opset15 as ops

from engines.plugins.extension import extension_path
from engines.reference import Reference
from engines.targets import openvino as target
from engines.targets.openvino_fused import BUNDLED, fused, weights_shape
from tests.plugins.binary_networks import Network, one_layer

pytestmark = pytest.mark.skipif(extension_path() is None, reason="needs a C++ compiler when bitserve is installed")


def layers_of(model: onnx.ModelProto) -> list[ov.Node]:
    graph = target.read_model(model)
    return [op for op in graph.get_ordered_ops() if "Binary" in op.get_type_name()]


def test_a_layer_has_its_data_and_one_constant() -> None:
    made = Network()
    first = made.conv(made.sign("x"), 40, 64, pads=[1, 1, 1, 1])
    model = made.model(made.conv(made.sign(first), 64, 24), 40)
    for layer, shape in zip(layers_of(model), ([64, 3, 3, 2], [24, 3, 3, 2]), strict=True):
        assert layer.get_type_name().startswith(BUNDLED)
        data, stored = layer.input_values()
        assert data.get_node().get_type_name() != "Constant"
        assert stored.get_node().get_type_name() == "Constant"
        assert weights_shape(layer) == shape


def test_weights_of_two_planes_are_there_once() -> None:
    """Where a sign has three values two layers share them."""
    made = Network()
    model = made.model(made.conv(made.sign("x", "sign(x)"), 40, 24, pads=[1, 1, 1, 1]), 40)
    weights = [
        [value for value in layer.input_values() if list(value.get_partial_shape())[1:] == [3, 3, 2]]
        for layer in layers_of(model)
    ]
    assert [len(found) for found in weights] == [1, 1]
    assert weights[0][0] == weights[1][0]
    x = np.random.default_rng(0).integers(-2, 3, (3, 40, 8, 8)).astype(np.float32)
    found = target.runner(target.compile_model(target.read_model(model), 1, 1), ["y"])({"x": x})["y"]
    np.testing.assert_array_equal(found, Reference(model)({"x": x})["y"])


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([0, 1, 2, 8], "cut off"), ([0, 1], "cut off"), ([0, 1, -1], "cut off"), ([0, 3, 1, 16], "no known type"),
        ([0, 1, 2, 8, 1], "other words than its parts"), ([0, 1, 2, 8, 2, 2, 1, 8, 0], "other words than its parts"),
    ],
)  # fmt: skip
def test_parts_that_are_not_those_of_the_bundle_are_refused(
    parts: list[int], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 16 words."""
    monkeypatch.setattr(target, "bundle_stored", lambda graph: 0)
    (layer,) = layers_of(one_layer())
    bundle = ops.constant(np.zeros(16, np.int32))
    with pytest.raises(RuntimeError, match=said):
        fused(BUNDLED, layer, [layer.input_value(0), bundle.output(0)], {"parts": parts})
