"""One file, three meanings that are one: ONNX Runtime runs the bodies, OpenVINO the kernels, NumPy the definition."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines.passes.binary_layers import with_binary_layers
from engines.plugins.bodies import with_bodies
from engines.plugins.extension import extension_path
from engines.plugins.ops import DOMAIN, VERSION, plain_activation
from engines.plugins.reference import binary_conv2d, binary_pack
from engines.reference import Reference
from engines.targets import openvino as target
from tests.plugins.binary_networks import FORMS, one_layer
from tests.plugins.test_binary_layers import wholes
from tests.plugins.test_kernels import layer


def alone(node: onnx.NodeProto, inputs: dict[str, np.ndarray], output: int) -> Reference:
    """A model of one operator, with its body."""
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in inputs.items()
    ]
    graph = helper.make_graph([node], "g", given, [helper.make_tensor_value_info("y", output, None)])
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, VERSION)]
    return Reference(with_bodies(helper.make_model(graph, opset_imports=imports, ir_version=10)))


@pytest.mark.parametrize("strict", [0, 1])
def test_packing_is_what_its_body_says(strict: int) -> None:
    rng = np.random.default_rng(0)
    node = helper.make_node("BinaryPack", ["x", "t"], ["y"], domain=DOMAIN, strict=strict)
    for channels, size in itertools.product((1, 31, 32, 33, 70), ((), (1,), (3, 5))):
        x = rng.integers(-2, 3, (2, channels, *size)).astype(np.float32)
        x[0, 0], x[1, -1] = np.nan, -0.0
        inputs = {"x": x, "t": rng.integers(-1, 2, channels).astype(np.float32)}
        found = alone(node, inputs, TensorProto.INT32)(inputs)["y"]
        np.testing.assert_array_equal(found, binary_pack(x, inputs["t"], strict=bool(strict)))


@pytest.mark.parametrize(
    "keys",
    [
        {}, {"pads": (1, 2, 0, 1)}, {"pads": (1, 2, 0, 1), "pad_value": 1}, {"strides": (2, 3), "dilations": (2, 1)},
        {"group": 2, "channels": 64},
    ],
)  # fmt: skip
def test_a_convolution_is_what_its_body_says(keys: dict[str, Any]) -> None:
    keys = {"channels": 40, **keys}
    own, bits, weights, multiplier, bias = layer(filters=24, size=(8, 7), kernel=(3, 2), **keys)
    node = helper.make_node("BinaryConv2d", ["bits", "w", "m", "b", "a"], ["y"], domain=DOMAIN, **own.values())
    inputs = {"bits": bits, "w": weights, "m": multiplier, "b": bias, "a": plain_activation()}
    found = alone(node, inputs, TensorProto.FLOAT)(inputs)["y"]
    np.testing.assert_array_equal(found, binary_conv2d(bits, weights, multiplier, bias, plain_activation(), own))


@pytest.mark.skipif(extension_path() is None, reason="needs a C++ compiler when bitserve is installed")
@pytest.mark.parametrize("form", FORMS)
def test_the_rewritten_file_means_in_onnx_runtime_what_openvino_runs(form: str) -> None:
    model = one_layer(form)
    rewritten = with_bodies(with_binary_layers(model)[0])
    onnx.checker.check_model(rewritten)
    inputs = wholes(20, 40)
    expected = Reference(model)(inputs)["y"]
    np.testing.assert_array_equal(Reference(rewritten)(inputs)["y"], expected)
    engine = target.compile_model(target.read_model(model), 1, 1)
    np.testing.assert_array_equal(target.runner(engine, ["y"])(inputs)["y"], expected)
