"""Files that hold `bnn` operators: written in floats they mean the same, and are packed again as they were."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from engines.errors import ModelRefused
from engines.passes.binary_floats import binary_floats
from engines.passes.binary_layers import with_binary_layers
from engines.plugins.bodies import with_bodies
from engines.plugins.ops import DOMAIN, ConvAttributes, GemmAttributes, PoolAttributes
from engines.reference import Reference
from tests.passes.binary_files import File
from tests.plugins.binary_networks import FORMS, one_layer
from tests.plugins.test_binary_layers import wholes

CHANNELS, FILTERS = 40, 33


def means_the_same(model: ModelProto) -> ModelProto:
    """Value for value: all numbers here are exact in FP32."""
    floats, note = binary_floats(model)
    assert note.endswith("layers were stored in bits")
    assert not any(node.domain == DOMAIN for node in floats.graph.node)
    assert not floats.functions
    inputs = wholes(20, CHANNELS, seed=3)
    (expected,), (found,) = Reference(model)(inputs).values(), Reference(floats)(inputs).values()
    np.testing.assert_array_equal(found, expected)
    return floats


@pytest.mark.parametrize(
    "activation",
    [
        np.array([[0], [1], [0]]),
        np.array([[0], [0], [0]]),
        np.array([[0], [0.25], [0]]),
        np.array([[1.5], [0.25], [-2]]),
        np.arange(3 * FILTERS).reshape(3, FILTERS) / 8 - 6,
    ],
    ids=["none", "relu", "leaky", "shifted", "of each filter"],
)
@pytest.mark.parametrize("keys", [{}, {"low": 0}, {"pad_value": 1}, {"pad_value": 1, "low": 0, "strides": (2, 1)}])
def test_a_convolution(keys: dict[str, Any], activation: np.ndarray) -> None:
    made = File()
    own = ConvAttributes(channels=CHANNELS, pads=(1, 0, 2, 1), **keys)
    stored = {**made.weights(FILTERS, 3, 2, CHANNELS), **made.floats(FILTERS, activation)}
    means_the_same(made.model(made.add("BinaryConv2d", made.pack("x", strict=1), stored, **own.values())))


def test_bits_that_go_through_thresholds_and_pools() -> None:
    """The same bits are read as -1 and +1, and as 0 and 1."""
    made = File()
    first, pool = (
        ConvAttributes(channels=CHANNELS, pads=(1, 1, 1, 1)),
        PoolAttributes(kernel_shape=(2, 2), strides=(2, 2)),
    )
    bits = made.add(
        "BinaryThreshold2d", made.pack("x"), {**made.weights(64, 3, 3, CHANNELS), **made.limits(64)}, **first.values()
    )
    pooled = made.add("BinaryMaxPool", bits, {}, **pool.values())
    sums = []
    for low in (-1, 0):
        own = ConvAttributes(channels=64, low=-1 if low else 0, group=2)
        stored = {**made.weights(FILTERS + 1, 2, 2, 32), **made.floats(FILTERS + 1, np.array([[0], [1], [0]]))}
        sums.append(made.add("BinaryConv2d", pooled, stored, **own.values()))
    made.nodes.append(helper.make_node("Add", sums, ["y"], name="sum"))
    means_the_same(made.model("y"))


def test_products() -> None:
    made = File()
    made.nodes.append(helper.make_node("GlobalAveragePool", ["x"], ["mean"], name="mean"))
    made.nodes.append(helper.make_node("Flatten", ["mean"], ["flat"], name="flat"))
    own, next_own = GemmAttributes(channels=CHANNELS), GemmAttributes(channels=FILTERS, low=0)
    bits = made.add(
        "BinaryThreshold",
        made.pack("flat"),
        {**made.weights(FILTERS, CHANNELS), **made.limits(FILTERS)},
        **own.values(),
    )
    stored = {**made.weights(7, FILTERS), **made.floats(7, np.array([[0.5], [0.5], [0]]))}
    means_the_same(made.model(made.add("BinaryGemm", bits, stored, **next_own.values())))


@pytest.mark.parametrize("form", FORMS)
def test_what_was_packed_is_packed_again(form: str) -> None:
    packed = with_bodies(with_binary_layers(one_layer(form))[0])
    again, names = with_binary_layers(binary_floats(packed)[0])
    assert names
    assert _operators(again) == _operators(packed)


def _operators(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node if node.domain == DOMAIN)


def test_a_function_of_the_same_name_is_read_as_what_it_is() -> None:
    made = File()
    stored = {**made.weights(FILTERS, 1, 1, CHANNELS), **made.floats(FILTERS, np.array([[0], [1], [0]]))}
    model = made.model(made.add("BinaryConv2d", made.pack("x"), stored, **ConvAttributes(channels=CHANNELS).values()))
    (conv,) = [one for one in model.functions if one.name == "BinaryConv2d"]
    conv.node[-1].op_type = "Sub"
    floats, note = binary_floats(model)
    assert floats is model
    assert note.endswith("their functions are others")


def test_bits_that_others_read_are_left_as_functions() -> None:
    made = File()
    bits = made.pack("x")
    stored = {**made.weights(FILTERS, 1, 1, CHANNELS), **made.floats(FILTERS, np.array([[0], [1], [0]]))}
    output = made.add("BinaryConv2d", bits, stored, **ConvAttributes(channels=CHANNELS).values())
    made.nodes.append(helper.make_node("Cast", [bits], ["whole"], name="cast", to=TensorProto.FLOAT))
    floats, note = binary_floats(made.model(output))
    assert note.endswith("bits come from others, or go there")
    assert floats.functions


def test_weights_that_are_too_many_as_floats_are_refused() -> None:
    """17 MB in the file would be 2.2 GB."""
    made = File()
    stored = {"w": np.zeros((2, 1, 1, 2**23), np.int32), **made.floats(2, np.array([[0], [1], [0]]))}
    own = ConvAttributes(channels=2**28)
    model = made.model(made.add("BinaryConv2d", made.pack("x"), stored, **own.values()))
    with pytest.raises(ModelRefused, match="more than 2147483647 bytes of weights in floats"):
        binary_floats(model)


def test_an_operator_that_is_not_known_is_left_for_others_to_name() -> None:
    made = File()
    stored = {**made.weights(FILTERS, 1, 1, CHANNELS), **made.floats(FILTERS, np.array([[0], [1], [0]]))}
    output = made.add("BinaryNothing", made.pack("x"), stored, **ConvAttributes(channels=CHANNELS).values())
    floats, note = binary_floats(made.model(output))
    assert note.endswith("some are not known here")
    assert floats.graph.node[-1].op_type == "BinaryNothing"
