"""What follows a layer's sums is computed with them, within 1e-5, or stays behind them with a reason."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from engines.passes.binary_layers import with_binary_layers
from engines.plugins.bodies import with_bodies
from engines.plugins.extension import extension_path
from engines.plugins.ops import DOMAIN
from engines.reference import Reference
from tests.plugins.binary_networks import Network
from tests.plugins.test_binary_layers import on_bits, wholes

node = helper.make_node
compiled = pytest.mark.skipif(extension_path() is None, reason="needs a C++ compiler when bitserve is installed")
FILTERS = 24


def numbers(made: Network, low: float, high: float, places: bool = True) -> np.ndarray:
    shape = (FILTERS, 1, 1) if places else (FILTERS,)
    return made.rng.uniform(low, high, shape).astype(np.float32)


def step(made: Network, kind: str, x: str) -> str:
    """One node behind x, with constants a channel."""
    y = made.name(kind.lower())
    if kind == "BatchNormalization":
        stored = {"g": (-2, 2), "b": (-3, 3), "m": (-5, 5), "v": (0.5, 9)}
        made.stored.update({f"{y}.{name}": numbers(made, *bounds, places=False) for name, bounds in stored.items()})
        made.nodes.append(node(kind, [x, *(f"{y}.{name}" for name in stored)], [y], name=y))
        return y
    bounds = {"Mul": (0.2, 3), "Div": (0.2, 3), "negative Mul": (-3, -0.2), "PRelu": (-0.5, 1)}.get(kind, (-4, 4))
    reads = [x]
    if kind not in ("Relu", "LeakyRelu"):
        made.stored[f"{y}.c"] = numbers(made, *bounds)
        reads = [f"{y}.c", x] if kind == "swapped Add" else [x, f"{y}.c"]
    made.nodes.append(node(kind.rsplit(maxsplit=1)[-1], reads, [y], name=y))
    return y


def behind_a_layer(*kinds: str) -> onnx.ModelProto:
    made = Network(3)
    value = made.conv(made.sign("x"), 40, FILTERS, pads=[1, 1, 1, 1])
    for kind in kinds:
        value = step(made, kind, value)
    return made.model(value, 40)


FUSED = (
    ("BatchNormalization",), ("Mul",), ("negative Mul",), ("Div",), ("Add",), ("swapped Add",), ("Sub",), ("Relu",),
    ("LeakyRelu",), ("PRelu",), ("Mul", "BatchNormalization", "PRelu"), ("Add", "PRelu", "Add"),
    ("BatchNormalization", "Add", "PRelu", "Add"), ("Relu", "Mul", "Add"), ("PRelu", "Add", "Mul", "Sub"),
)  # fmt: skip


@compiled
@pytest.mark.parametrize("kinds", FUSED, ids=" ".join)
def test_fused(kinds: tuple[str, ...]) -> None:
    model = behind_a_layer(*kinds)
    rewritten, _ = with_binary_layers(model)
    assert [one.op_type for one in rewritten.graph.node] == ["BinaryPack", "BinaryConv2d"]
    inputs = wholes(50, 40)
    expected = Reference(model)(inputs)["y"]
    for found in (on_bits(model, inputs), Reference(with_bodies(rewritten))(inputs)["y"]):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_norm_of_whole_sums_is_the_same_number() -> None:
    """Signs that are taken later, of a sum with something else, fall as they did."""
    made = Network(5)
    value = made.conv(made.sign("x"), 40, FILTERS, bias=False)
    made.stored[f"{value}.w"] = np.sign(made.stored[f"{value}.w"])
    model = made.model(step(made, "BatchNormalization", value), 40)
    rewritten, _ = with_binary_layers(model)
    assert [one.op_type for one in rewritten.graph.node] == ["BinaryPack", "BinaryConv2d"]
    inputs = wholes(50, 40)
    np.testing.assert_array_equal(Reference(with_bodies(rewritten))(inputs)["y"], Reference(model)(inputs)["y"])


@compiled
def test_products_too() -> None:
    made = Network(2)
    made.nodes.append(node("Flatten", [made.sign("x")], ["flat"], name="flatten"))
    made.stored["w"] = made.rng.choice([-1, 1], (40 * 64, 30)).astype(np.float32)
    made.stored["c"] = made.rng.uniform(0.2, 3, 30).astype(np.float32)
    made.nodes += [
        node("MatMul", ["flat", "w"], ["m"], name="product"), node("Mul", ["c", "m"], ["s"], name="scale"),
        node("Relu", ["s"], ["r"], name="relu"), node("Add", ["r", "c"], ["y"], name="shift"),
    ]  # fmt: skip
    model = made.model("y", 40)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, ["N", 30]))
    rewritten, _ = with_binary_layers(model)
    assert [one.op_type for one in rewritten.graph.node] == ["Flatten", "BinaryPack", "BinaryGemm"]
    inputs = wholes(50, 40)
    np.testing.assert_allclose(on_bits(model, inputs), Reference(model)(inputs)["y"], rtol=1e-5, atol=1e-5)


def left_behind(model: onnx.ModelProto) -> dict[str, str]:
    left: dict[str, str] = {}
    with_binary_layers(model, left)
    return left


def read_twice() -> onnx.ModelProto:
    made = Network(3)
    value = made.conv(made.sign("x"), 40, FILTERS)
    made.nodes.append(node("Add", [step(made, "Relu", value), value], ["sum"], name="sum"))
    return made.model("sum", 40)


def places() -> onnx.ModelProto:
    made = Network(3)
    value = made.conv(made.sign("x"), 40, FILTERS, pads=[1, 1, 1, 1])
    made.stored["c"] = made.rng.standard_normal((8, 8)).astype(np.float32)
    made.nodes.append(node("Add", [value, "c"], ["sum"], name="sum"))
    return made.model("sum", 40)


def too_far() -> onnx.ModelProto:
    """Two numbers that cancel, so large that the sums between them are rounded to multiples of 4."""
    made = Network(3)
    value = made.conv(made.sign("x"), 40, FILTERS, bias=False)
    for number in (5e7, -5e7):
        made.stored[f"c{number}"] = np.array(number, np.float32)
        y = made.name("add")
        made.nodes.append(node("Add", [value, f"c{number}"], [y], name=y))
        value = y
    return made.model(value, 40)


def twice() -> onnx.ModelProto:
    made = Network(3)
    value = made.conv(made.sign("x"), 40, FILTERS)
    made.nodes.append(node("Add", [value, value], ["sum"], name="sum"))
    return made.model("sum", 40)


LEFT = {
    "sums that are doubled": (twice, {"conv2": "Add 'sum' stays behind it: it reads them twice"}),
    "an activation turned round": (
        lambda: behind_a_layer("Relu", "negative Mul"),
        {"conv2": "Mul 'negative mul4' stays behind it: it comes after an activation that it would turn round"},
    ),
    "two activations": (
        lambda: behind_a_layer("Relu", "LeakyRelu"),
        {"conv2": "LeakyRelu 'leakyrelu4' stays behind it: it comes after an activation that it would turn round"},
    ),
    "two readers": (read_twice, {}),
    "constants of places": (
        places, {"conv2": "Add 'sum' stays behind it: its constants differ from place to place"},
    ),
    "what cancels": (
        too_far, {"conv2": "Add 'add4' stays behind it: it would be off by more than 1e-05"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_left_with_a_reason(name: str) -> None:
    make, reasons = LEFT[name]
    model = make()
    assert left_behind(model) == reasons
    rewritten, _ = with_binary_layers(model)
    assert {one.domain for one in rewritten.graph.node} == {"", DOMAIN}
    inputs = wholes(5, 40)
    found = Reference(with_bodies(rewritten))(inputs)["y"]
    np.testing.assert_allclose(found, Reference(model)(inputs)["y"], rtol=1e-5, atol=1e-5)
