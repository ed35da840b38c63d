"""What each rule of binary layers makes of a model, printed before and after; and what it answers.

`python -m tests.plugins.test_golden write` writes the texts anew: look at what changed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from engines.passes.binary_convolution import ConvolutionRule
from engines.passes.binary_epilogues import epilogue_rules
from engines.passes.binary_find import find_binary_layers
from engines.passes.binary_packing import Found
from engines.passes.binary_pools import PoolRule
from engines.passes.binary_product import product_rules
from engines.passes.binary_rules import Layers, applied
from engines.passes.binary_thresholds import ThresholdRule
from engines.plugins.bodies import with_bodies
from engines.reference import Reference
from tests.plugins.binary_networks import Network
from tests.plugins.test_binary_layers import wholes

FOLDER = Path(__file__).parent / "golden"
CHANNELS, SIZE = 3, 5
node = helper.make_node
Rewrite = Callable[[onnx.ModelProto], tuple[onnx.ModelProto, dict[str, str]]]


def layers_on_bits(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    found, left = find_binary_layers(model)
    layers, of = Layers(model), Found(found)
    convolution = ConvolutionRule.rule(layers, left, of)  # type: ignore[no-untyped-call]
    return applied(model, layers, [convolution, *product_rules(layers, left, of)]), left


def thresholds(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    before, left = layers_on_bits(model)
    layers = Layers(before)
    return applied(before, layers, [ThresholdRule.rule(layers, left)]), left  # type: ignore[no-untyped-call]


def epilogues(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    before, left = layers_on_bits(model)
    layers = Layers(before)
    return applied(before, layers, epilogue_rules(layers, left)), left


def pools(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    before, left = layers_on_bits(model)
    layers = Layers(before)
    return applied(before, layers, [PoolRule.rule(layers, left)]), left  # type: ignore[no-untyped-call]


def padded_convolution() -> onnx.ModelProto:
    made = Network()
    return made.model(made.conv(made.sign("x"), CHANNELS, 2, 2, pads=[1, 0, 0, 1], strides=[2, 1]), CHANNELS, SIZE)


def two_planes() -> onnx.ModelProto:
    """Sign answers 0 for 0."""
    made = Network()
    return made.model(made.conv(made.sign("x", "sign(x)"), CHANNELS, 2, 1), CHANNELS, SIZE)


def product() -> onnx.ModelProto:
    made = Network()
    made.nodes.append(node("GlobalAveragePool", ["x"], ["mean"], name="mean"))
    made.nodes.append(node("Flatten", ["mean"], ["flat"], name="flat"))
    made.stored["w"] = made.rng.choice([-2, 2], (CHANNELS, 4)).astype(np.float32)
    made.nodes.append(node("MatMul", [made.sign("flat", "sign(relu(x))"), "w"], ["m"], name="product"))
    model = made.model("m", CHANNELS, SIZE)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, ["N", 4]))
    return model


def normed_and_pooled() -> onnx.ModelProto:
    """Factors of both signs behind the pool: a channel is negated in the weights of the second layer."""
    made = Network()
    value = made.conv(made.sign("x"), CHANNELS, 2, 2)
    made.stored.update(gamma=np.array([1, -1], np.float32), beta=np.array([0, 1], np.float32))
    made.stored.update(mean=np.array([2, -1], np.float32), var=np.array([4, 1], np.float32))
    made.nodes += [
        node("MaxPool", [value], ["pooled"], name="pool", kernel_shape=[2, 2]),
        node("BatchNormalization", ["pooled", "gamma", "beta", "mean", "var"], ["normed"], name="norm", epsilon=0.0),
    ]
    return made.model(made.conv(made.sign("normed", "x > 0"), 2, 1, 1), CHANNELS, SIZE)


def scaled_and_bent() -> onnx.ModelProto:
    made = Network()
    value = made.conv(made.sign("x"), CHANNELS, 2, 1)
    made.stored.update(slope=np.array([[[0.25]], [[0.5]]], np.float32))
    made.nodes += [
        node("Mul", [value, "half"], ["scaled"], name="scale"),
        node("PRelu", ["scaled", "slope"], ["bent"], name="bend"),
        node("Add", ["two", "bent"], ["z"], name="shift"),
    ]  # fmt: skip
    return made.model("z", CHANNELS, SIZE)


def pooled_input() -> onnx.ModelProto:
    made = Network()
    made.nodes.append(node("MaxPool", ["x"], ["pooled"], name="pool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
    return made.model(made.conv(made.sign("pooled"), CHANNELS, 2, 1), CHANNELS, SIZE)


RULES: dict[str, tuple[Callable[[], onnx.ModelProto], Rewrite]] = {
    "binary_convolution": (padded_convolution, layers_on_bits),
    "binary_convolution_of_three_values": (two_planes, layers_on_bits),
    "binary_product": (product, layers_on_bits),
    "binary_thresholds": (normed_and_pooled, thresholds),
    "binary_epilogues": (scaled_and_bent, epilogues),
    "binary_pools": (pooled_input, pools),
}


def printed(model: onnx.ModelProto) -> str:
    text: str = onnx.printer.to_text(model)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def text_of(name: str) -> str:
    make, rewrite = RULES[name]
    model = make()
    before = model if rewrite is layers_on_bits else layers_on_bits(model)[0]
    return f"before\n\n{printed(before)}\n\nafter\n\n{printed(rewrite(model)[0])}\n"


@pytest.mark.parametrize("name", RULES)
def test_a_rule_makes_what_it_made(name: str) -> None:
    assert text_of(name) == (FOLDER / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", RULES)
def test_and_the_answers_are_the_same(name: str) -> None:
    make, rewrite = RULES[name]
    model = make()
    inputs = wholes(50, CHANNELS, SIZE)
    rewritten, left = rewrite(model)
    assert left == {}
    np.testing.assert_array_equal(Reference(with_bodies(rewritten))(inputs)["y"], Reference(model)(inputs)["y"])


def test_no_text_is_without_its_rule() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(RULES)


if __name__ == "__main__" and sys.argv[1:] == ["write"]:
    for rule in RULES:
        (FOLDER / f"{rule}.txt").write_text(text_of(rule))
