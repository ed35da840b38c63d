"""Bits between two layers: thresholds of whole numbers say what floats would have said, ties among them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx import TensorProto, helper

from engines.passes.binary_layers import with_binary_layers
from engines.passes.binary_thresholds import NoThreshold, thresholds_of
from engines.plugins.bodies import with_bodies
from engines.plugins.extension import extension_path
from engines.plugins.native import Native
from engines.plugins.ops import DOMAIN, pack_bits, plain_activation
from engines.plugins.reference import binary_conv2d, binary_pack, binary_threshold2d, finished
from engines.reference import Reference
from tests.plugins.binary_networks import FORMS, Network
from tests.plugins.test_binary_layers import on_bits, wholes
from tests.plugins.test_bodies import alone
from tests.plugins.test_kernels import KERNELS, layer, usable

compiled = pytest.mark.skipif(extension_path() is None, reason="needs a C++ compiler when bitserve is installed")


def told(
    multiplier: np.ndarray, bias: np.ndarray, activation: np.ndarray, limits: np.ndarray, sums: int, *, strict: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Thresholds and flips of sums with an activation, which is one column, or one for each filter."""
    bends = np.broadcast_to(activation, (3, len(multiplier)))

    def values(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = finished(numbers, multiplier, bias, bends)
        return found, found > limits if strict else found >= limits

    return thresholds_of(values, len(multiplier), sums)[:2]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("slope", [0.0, 0.25, 1.0, 3.0])
def test_a_threshold_behind_an_activation_says_what_floats_say(slope: float, strict: bool) -> None:
    """Slopes of 0 answer one value for many numbers, which may be the limit itself."""
    rng = np.random.default_rng(1)
    filters, sums = 200, 60
    multiplier, bias, shift, offset = rng.integers(-3, 4, (4, filters)).astype(np.float32)
    activation = np.stack([shift, np.full(filters, slope, np.float32), offset])
    numbers = np.arange(-sums, sums + 1)
    values = finished(np.broadcast_to(numbers[:, None], (len(numbers), filters)), multiplier, bias, activation)
    limits = np.where(
        rng.random(filters) < 0.7, values[rng.integers(len(numbers), size=filters), range(filters)], shift
    )
    thresholds, flips = told(multiplier, bias, activation, limits.astype(np.float32), sums, strict=strict)
    expected = ~(values > limits) if strict else ~(values >= limits)
    np.testing.assert_array_equal((numbers[:, None] < thresholds) != flips, expected)


def test_a_sign_that_changes_twice_has_no_threshold() -> None:
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    falling = np.array([[0], [-1], [0]], np.float32)  # |d|
    with pytest.raises(NoThreshold, match="changes more than once"):
        told(one, zero, falling, one * 3, 10, strict=False)


@pytest.mark.parametrize("strict", [True, False])
def test_a_threshold_says_what_floats_say_at_every_number(strict: bool) -> None:
    """Factors of both signs, so small that sums round to the bias, and limits that are met exactly."""
    rng = np.random.default_rng(0)
    filters, sums = 300, 200
    multiplier = (rng.choice([-1, 1], filters) * 10.0 ** rng.integers(-12, 3, filters)).astype(np.float32)
    bias = rng.integers(-5, 6, filters).astype(np.float32)
    d = rng.integers(-sums, sums + 1, filters)
    limits = np.where(
        rng.random(filters) < 0.7, d.astype(np.float32) * multiplier + bias, rng.standard_normal(filters)
    ).astype(np.float32)
    thresholds, flips = told(multiplier, bias, plain_activation(), limits, sums, strict=strict)
    numbers = np.arange(-sums, sums + 1)
    values = numbers.astype(np.float32)[:, None] * multiplier + bias
    expected = ~(values > limits) if strict else ~(values >= limits)
    np.testing.assert_array_equal((numbers[:, None] < thresholds) != flips, expected)


@compiled
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_sets_the_bits_of_the_reference(kernel: str) -> None:
    native, rng = Native(), np.random.default_rng(0)
    usable(native, kernel)
    for channels, filters in itertools.product((1, 33, 64, 130), (1, 31, 32, 33, 64, 100)):
        own, bits, weights, _, _ = layer(channels, filters, pads=(1, 0, 2, 1))
        thresholds = rng.integers(-channels, channels + 1, filters).astype(np.int32)
        flips = pack_bits(rng.random(filters) < 0.5)
        found = native.threshold2d(kernel, bits, weights, thresholds, flips, own)
        np.testing.assert_array_equal(found, binary_threshold2d(bits, weights, thresholds, flips, own))
    own, bits, weights, _, _ = layer(64, 64, group=2)
    thresholds, flips = np.arange(-32, 32, dtype=np.int32), pack_bits(rng.random(64) < 0.5)
    found = native.threshold2d(kernel, bits, weights, thresholds, flips, own)
    np.testing.assert_array_equal(found, binary_threshold2d(bits, weights, thresholds, flips, own))


@pytest.mark.parametrize("filters", [24, 32, 40])
def test_a_threshold_is_what_its_body_says(filters: int) -> None:
    own, bits, weights, _, _ = layer(40, filters, pads=(1, 1, 1, 1))
    rng = np.random.default_rng(1)
    inputs = {
        "bits": bits, "w": weights, "t": rng.integers(-40, 41, filters).astype(np.int32),
        "f": pack_bits(rng.random(filters) < 0.5),
    }  # fmt: skip
    node = helper.make_node("BinaryThreshold2d", list(inputs), ["y"], domain=DOMAIN, **own.values())
    found = alone(node, inputs, TensorProto.INT32)(inputs)["y"]
    np.testing.assert_array_equal(found, binary_threshold2d(bits, weights, inputs["t"], inputs["f"], own))


def chain(forms: list[str], seed: int, pad: float = 0.0) -> Network:
    made = Network(seed)
    value, channels = "x", 40
    for form in forms:
        sign = made.sign(value, form)
        filters = int(made.rng.integers(1, 70))
        value = made.conv(sign, channels, filters, 3, pads=[1, 1, 1, 1])
        channels = filters
    return made


@compiled
@pytest.mark.parametrize("form", FORMS)
def test_bits_stay_bits_between_layers(form: str) -> None:
    """Bit for bit, on inputs with ties, in ONNX Runtime on the original and on the rewritten file, and in OpenVINO."""
    made = chain([form, "x < 0, the other way round", form, "x > 0"], seed=len(form))
    model = made.model(made.nodes[-1].output[0], 40)
    rewritten, names = with_binary_layers(model)
    kinds = [node.op_type for node in rewritten.graph.node]
    assert kinds == ["BinaryPack", "BinaryThreshold2d", "BinaryThreshold2d", "BinaryThreshold2d", "BinaryConv2d"]
    assert len(names) == 4
    inputs = wholes(50, 40)
    expected = Reference(model)(inputs)["y"]
    np.testing.assert_array_equal(Reference(with_bodies(rewritten))(inputs)["y"], expected)
    np.testing.assert_array_equal(on_bits(model, inputs), expected)


def test_a_sum_that_others_read_stays_a_sum() -> None:
    made = Network()
    first = made.conv(made.sign("x"), 40, 40, pads=[1, 1, 1, 1])
    second = made.conv(made.sign(first), 40, 40, pads=[1, 1, 1, 1])
    made.nodes.append(helper.make_node("Add", [first, second], ["sum"], name="residual"))
    rewritten, _ = with_binary_layers(made.model("sum", 40))
    assert "BinaryThreshold2d" not in {node.op_type for node in rewritten.graph.node}


def test_a_sum_that_a_body_reads_stays_a_sum() -> None:
    made = Network()
    first = made.conv(made.sign("x"), 40, 40, pads=[1, 1, 1, 1])
    second = made.conv(made.sign(first), 40, 40, pads=[1, 1, 1, 1])
    made.stored["yes"] = np.array(True)
    bodies = [
        helper.make_graph(
            [helper.make_node("Add", [first, second], [f"{name}.sum"], name=name)], name, [],
            [helper.make_tensor_value_info(f"{name}.sum", TensorProto.FLOAT, None)],
        )
        for name in ("then", "else")
    ]  # fmt: skip
    made.nodes.append(
        helper.make_node("If", ["yes"], ["z"], name="choice", then_branch=bodies[0], else_branch=bodies[1])
    )
    model = made.model("z", 40)
    rewritten, names = with_binary_layers(model)
    assert len(names) == 2
    assert "BinaryThreshold2d" not in {node.op_type for node in rewritten.graph.node}
    inputs = wholes(3, 40)
    np.testing.assert_array_equal(Reference(with_bodies(rewritten))(inputs)["y"], Reference(model)(inputs)["y"])


def test_packing_of_a_sum_is_the_threshold_of_it() -> None:
    """The two forms side by side in NumPy: floats that are packed, and numbers that are compared."""
    own, bits, weights, multiplier, bias = layer(40, 33, pads=(1, 1, 1, 1))
    limits = np.random.default_rng(2).standard_normal(33).astype(np.float32)
    thresholds, flips = told(multiplier, bias, plain_activation(), limits, 40 * 9, strict=False)
    packed = binary_pack(binary_conv2d(bits, weights, multiplier, bias, plain_activation(), own), limits)
    np.testing.assert_array_equal(binary_threshold2d(bits, weights, thresholds, pack_bits(flips), own), packed)
