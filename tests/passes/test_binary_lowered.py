"""Binary layers in INT8 and FP8 answer what NumPy's definition and the ONNX bodies answer, bit for bit.

ONNX Runtime's CPU runs QuantizeLinear and DequantizeLinear of both types; its products are of FP32 then. That a GPU's
are exact too is said by its arithmetic (INT8: whole numbers of 32 bits), and is not seen here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from onnx import ModelProto, TensorProto, helper, numpy_helper

from engines.errors import ModelRefused
from engines.passes.binary_layers import with_binary_layers
from engines.passes.binary_lowered import Kind, lowered
from engines.plugins.bodies import with_bodies
from engines.plugins.ops import DOMAIN, ConvAttributes, GemmAttributes, PoolAttributes, pack_bits, plain_activation
from engines.reference import Reference
from engines.targets.tensorrt_rules import refuse_for_tensorrt
from tests.passes.binary_files import File, in_numpy
from tests.plugins.binary_networks import FORMS, OTHER_FORMS, one_layer
from tests.plugins.test_binary_layers import wholes
from tests.plugins.test_chains import networks
from tests.plugins.test_operators import CONVOLUTIONS, epilogue

KINDS: tuple[Kind, ...] = get_args(Kind)
TYPES = {"INT8": TensorProto.INT8, "FP8": TensorProto.FLOAT8E4M3FN}
FILTERS = 33


def same_bits(found: np.ndarray, expected: np.ndarray) -> None:
    """Zeros of both signs are told apart."""
    assert found.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.int32), np.ascontiguousarray(expected).view(np.int32))


def numbers(*shape: int, seed: int = 1) -> np.ndarray:
    """Whole ones, many of them at their thresholds."""
    rng = np.random.default_rng(seed)
    found = rng.integers(-2, 3, shape).astype(np.float32)
    return np.where(found == 0, rng.choice([-0.0, 0.0], shape), found).astype(np.float32)


def check(model: ModelProto, x: np.ndarray, *, alone: bool = True) -> None:
    """`alone`: it has no other operators, so that NumPy's definition is asked, too."""
    expected = next(iter(Reference(with_bodies(model))({"x": x}).values()))
    if alone:
        same_bits(expected, in_numpy(model, x))
    for kind in KINDS:
        written = lowered(model, kind)
        onnx.checker.check_model(written.model)
        refuse_for_tensorrt(written.model)
        assert not written.model.functions
        names = [node.name for node in written.model.graph.node]
        assert len(set(names)) == len(names)
        assert written.names <= set(names)
        (found,) = Reference(written.model)({"x": x}).values()
        same_bits(found, expected)


def read_back(made: File, bits: str, channels: int, *, flat: bool = False) -> str:
    """Sums that tell all bits: filter i has -1 at channel i and +1 elsewhere, so it sums up all less twice that one."""
    packed = pack_bits(np.eye(channels, dtype=bool))
    stored = {"w": packed if flat else packed[:, None, None], "m": np.ones(channels, np.float32)}
    stored |= {"b": np.zeros(channels, np.float32), "a": plain_activation()}
    own = GemmAttributes(channels=channels) if flat else ConvAttributes(channels=channels)
    return made.add("BinaryGemm" if flat else "BinaryConv2d", bits, stored, **own.values())


@pytest.mark.parametrize("columns", [1, 64])
@pytest.mark.parametrize("keys", CONVOLUTIONS)
def test_convolutions_to_floats(keys: dict[str, Any], columns: int) -> None:
    own = ConvAttributes(**{"channels": 40, **keys})
    made = File(own.channels)
    stored = {**made.weights(64, 3, 2, own.channels // own.group), **epilogue(64, columns)}
    model = made.model(made.add("BinaryConv2d", made.pack("x", strict=1), stored, **own.values()))
    check(model, numbers(2, own.channels, 8, 7))


@pytest.mark.parametrize("keys", CONVOLUTIONS)
def test_convolutions_to_bits(keys: dict[str, Any]) -> None:
    own = ConvAttributes(**{"channels": 40, **keys})
    made = File(own.channels)
    stored = {**made.weights(64, 3, 2, own.channels // own.group), **made.limits(64)}
    # beyond every sum, and as far as whole numbers go
    stored["t"][:4] = np.iinfo(np.int32).min, np.iinfo(np.int32).max, 3 * 2 * 40 + 1, -3 * 2 * 40
    bits = made.add("BinaryThreshold2d", made.pack("x"), stored, **own.values())
    check(made.model(read_back(made, bits, 64)), numbers(2, own.channels, 8, 7))


def test_channels_off_the_word() -> None:
    for channels, filters in itertools.product((1, 31, 32, 33, 65), (1, 31, 33, 64)):
        made, own = File(channels), ConvAttributes(channels=channels, pads=(1, 1, 1, 1))
        stored = {**made.weights(filters, 3, 3, channels), **epilogue(filters, filters)}
        check(made.model(made.add("BinaryConv2d", made.pack("x"), stored, **own.values())), numbers(1, channels, 5, 6))


@pytest.mark.parametrize("low", [-1, 0])
@pytest.mark.parametrize("pad_value", [0, 1])
def test_borders_strides_and_dilations(pad_value: int, low: int) -> None:
    pads = ((0, 0, 0, 0), (1, 1, 1, 1), (0, 2, 1, 0), (3, 3, 3, 3))
    for strides, dilations, pad in itertools.product(((1, 1), (2, 1), (3, 2)), ((1, 1), (2, 1)), pads):
        made = File()
        own = ConvAttributes(
            channels=40, strides=strides, dilations=dilations, pads=pad, pad_value=1 if pad_value else 0,
            low=-1 if low else 0,
        )  # fmt: skip
        stored = {**made.weights(8, 3, 2, 40), **epilogue(8, 1)}
        check(made.model(made.add("BinaryConv2d", made.pack("x"), stored, **own.values())), numbers(2, 40, 8, 7))


@pytest.mark.parametrize("group", [2, 3])
@pytest.mark.parametrize("pad_value", [0, 1])
def test_groups(group: int, pad_value: int) -> None:
    own = ConvAttributes(channels=64 * group, group=group, pads=(1, 1, 1, 1), pad_value=1 if pad_value else 0)
    made, filters = File(own.channels), 32 * group
    first = {**made.weights(filters, 3, 3, 64), **made.limits(filters)}
    bits = made.add("BinaryThreshold2d", made.pack("x"), first, **own.values())
    next_own = ConvAttributes(channels=filters, group=group, low=0)
    stored = {**made.weights(10 * group, 2, 2, 32), **epilogue(10 * group, 1)}
    check(made.model(made.add("BinaryConv2d", bits, stored, **next_own.values())), numbers(2, own.channels, 6, 5))


@pytest.mark.parametrize("low", [-1, 0])
@pytest.mark.parametrize(("channels", "filters", "rows"), [(1, 1, 1), (33, 40, 5), (100, 64, 70)])
def test_products(channels: int, filters: int, rows: int, low: int) -> None:
    own = GemmAttributes(channels=channels, low=-1 if low else 0)
    made = File(channels, flat=True)
    stored = {**made.weights(filters, channels), **epilogue(filters, filters)}
    check(made.model(made.add("BinaryGemm", made.pack("x"), stored, **own.values())), numbers(rows, channels))
    made = File(channels, flat=True)
    limits = {**made.weights(filters, channels), **made.limits(filters, channels)}
    bits = made.add("BinaryThreshold", made.pack("x"), limits, **own.values())
    check(made.model(read_back(made, bits, filters, flat=True)), numbers(rows, channels))


@pytest.mark.parametrize(
    "keys",
    [
        {"kernel_shape": (2, 2), "strides": (2, 2)}, {"kernel_shape": (3, 3), "strides": (2, 1), "pads": (1, 2, 0, 1)},
        {"kernel_shape": (2, 3), "dilations": (3, 2)}, {"kernel_shape": (1, 1)},
    ],
)  # fmt: skip
def test_pools_of_bits_that_two_layers_read_otherwise(keys: dict[str, Any]) -> None:
    """As -1 and +1, and as 0 and 1."""
    for low in (-1, 0):
        made = File(70)
        pooled = made.add("BinaryMaxPool", made.pack("x"), {}, **PoolAttributes(**keys).values())
        own = ConvAttributes(channels=70, low=-1 if low else 0)
        stored = {**made.weights(90, 1, 1, 70), **made.floats(90, plain_activation())}
        model = made.model(made.add("BinaryConv2d", pooled, stored, **own.values()))
        check(model, numbers(2, 70, 9, 7) - np.float32(1.5))
    made = File(70)
    pooled = made.add("BinaryMaxPool", made.pack("x"), {}, **PoolAttributes(**keys).values())
    sums = []
    for low in (-1, 0):
        own = ConvAttributes(channels=70, low=-1 if low else 0)
        stored = {**made.weights(90, 1, 1, 70), **made.floats(90, plain_activation())}
        sums.append(made.add("BinaryConv2d", pooled, stored, **own.values()))
    made.nodes.append(helper.make_node("Add", sums, ["y"], name="sum"))
    check(made.model("y"), numbers(2, 70, 9, 7) - np.float32(1.5), alone=False)


@pytest.mark.parametrize("strict", [0, 1])
def test_what_is_packed_of_no_number_is_negative(strict: int) -> None:
    made = File()
    model = made.model(read_back(made, made.pack("x", strict=strict), 40))
    x = numbers(2, 40, 3, 3)
    x[0, :4, 0, 0] = np.nan, -np.inf, np.inf, -0.0
    check(model, x)


ACTIVATIONS = {
    "none": np.array([[0], [1], [0]]), "relu": np.array([[0], [0], [0]]), "leaky": np.array([[0], [0.25], [0]]),
    "falling": np.array([[0], [-0.5], [0]]), "relu, then a sum": np.array([[0], [0], [1.5]]),
    "minus zero": np.array([[0], [1], [-0.0]]), "relu to minus zero": np.array([[0], [0], [-0.0]]),
    "shifted": np.array([[1.5], [0.25], [-2]]), "of each filter": np.arange(3 * FILTERS).reshape(3, FILTERS) / 8 - 6,
}  # fmt: skip
FACTORS = {
    "ones": np.ones(FILTERS), "of both signs": np.linspace(-1, 1, FILTERS), "positive": np.linspace(0.1, 1, FILTERS),
    "infinite sums": np.linspace(-3e38, 3e38, FILTERS),
}  # fmt: skip


@pytest.mark.parametrize("bias", ["zeros", "minus zeros", "some", "ties"])
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_epilogues_to_the_sign_of_zero(activation: str, factor: str, bias: str) -> None:
    """A product with a factor that is not positive may be -0, which a sum with +0 makes +0; with a shift, ties."""
    made, own = File(), ConvAttributes(channels=40)
    added = {
        "zeros": np.zeros(FILTERS), "minus zeros": -np.zeros(FILTERS), "some": np.linspace(-2, 2, FILTERS),
        "ties": np.full(FILTERS, 1.5),
    }[bias]  # fmt: skip
    stored = {
        **made.weights(FILTERS, 1, 1, 40), "m": FACTORS[factor].astype(np.float32), "b": added.astype(np.float32),
        "a": ACTIVATIONS[activation].astype(np.float32),
    }  # fmt: skip
    model = made.model(made.add("BinaryConv2d", made.pack("x"), stored, **own.values()))
    with np.errstate(all="ignore"):
        check(model, numbers(2, 40, 6, 6))


def test_the_largest_sum_that_fp32_holds() -> None:
    """2**24 - 1 signs; one more is refused, by its name."""
    for channels in (2**24 - 1, 2**24):
        made, own = File(channels, flat=True), GemmAttributes(channels=channels)
        stored = {"w": np.zeros((1, 2**19), np.int32), "t": np.array([channels], np.int32), "f": np.zeros(1, np.int32)}
        made.stored["limits"] = np.zeros(channels, np.float32)
        made.nodes.append(helper.make_node("BinaryPack", ["x", "limits"], ["p"], "pack", domain=DOMAIN, strict=0))
        bits = made.add("BinaryThreshold", "p", stored, **own.values())
        model = made.model(read_back(made, bits, 1, flat=True))
        if channels == 2**24:
            with pytest.raises(ModelRefused, match="INT8: n1 sum up more than 16777215 signs"):
                lowered(model, "INT8")
            continue
        x = np.ones((2, channels), np.float32)
        x[1, 7] = -1
        # by its threshold, a sum of all is +1, one that a sign is missing in is -1
        assert next(iter(Reference(lowered(model, "INT8").model)({"x": x}).values())).tolist() == [[-1.0], [1.0]]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_bytes_and_activations_are_rounded_once(kind: Kind) -> None:
    made, own = File(), ConvAttributes(channels=40, pads=(1, 1, 1, 1))
    bits, sums = made.pack("x"), []
    for _ in range(2):
        stored = {**made.weights(8, 3, 3, 40), **made.floats(8, plain_activation())}
        sums.append(made.add("BinaryConv2d", bits, stored, **own.values()))
    made.nodes.append(helper.make_node("Add", sums, ["y"], name="sum"))
    found = lowered(made.model("y"), kind)
    assert found.stored_bytes == {"n1": 8 * 40 * 9, "n2": 8 * 40 * 9}
    tensors = [tensor for tensor in found.model.graph.initializer if tensor.data_type == TYPES[kind] and tensor.dims]
    assert [len(tensor.raw_data) for tensor in tensors] == list(found.stored_bytes.values())
    assert {float(v) for tensor in tensors for v in np.unique(numpy_helper.to_array(tensor))} == {-1.0, 1.0}
    kinds = [node.op_type for node in found.model.graph.node]
    assert (kinds.count("QuantizeLinear"), kinds.count("DequantizeLinear")) == (1, 3)
    assert "sum" not in found.names


@pytest.mark.parametrize("low", [-1, 0])
def test_thresholds_at_and_beyond_every_sum(low: int) -> None:
    """All sums of three signs that there are, with thresholds that no sum reaches among them, flipped and not."""
    limits = np.repeat(np.array([-(2**31), -4, *range(-3, 5), 5, 2**31 - 1], np.int32), 2)
    made, own = File(3, flat=True), GemmAttributes(channels=3, low=-1 if low else 0)
    made.stored["limits"] = np.zeros(3, np.float32)
    made.nodes.append(helper.make_node("BinaryPack", ["x", "limits"], ["p"], "pack", domain=DOMAIN, strict=0))
    flips = pack_bits(np.arange(len(limits)) % 2 == 1)
    for weights in ([0], [7], [2]):
        stored = {"w": np.array([weights] * len(limits), np.int32), "t": limits, "f": flips}
        made.nodes, made.stored = made.nodes[:1], {"limits": made.stored["limits"]}
        bits = made.add("BinaryThreshold", "p", stored, **own.values())
        check(
            made.model(read_back(made, bits, len(limits), flat=True)),
            np.array(list(itertools.product((-1, 1), repeat=3)), np.float32),
        )


def test_layers_without_names_get_some() -> None:
    made = File()
    bits, sums = made.pack("x"), []
    for filters in (8, 8):
        stored = {**made.weights(filters, 1, 1, 40), **made.floats(filters, plain_activation())}
        sums.append(made.add("BinaryConv2d", bits, stored, **ConvAttributes(channels=40).values()))
    made.nodes.append(helper.make_node("Add", sums, ["y"]))
    for node in made.nodes:
        node.name = ""
    model = made.model("y")
    assert lowered(model, "INT8").stored_bytes == {"BinaryConv2d_0": 320, "BinaryConv2d_1": 320}
    check(model, numbers(2, 40, 3, 3), alone=False)


def test_names_that_are_taken_are_left() -> None:
    made, own = File(), ConvAttributes(channels=40)
    stored = {**made.weights(8, 1, 1, 40), **made.floats(8, plain_activation())}
    output = made.add("BinaryConv2d", made.pack("x"), stored, **own.values())
    made.nodes.append(helper.make_node("Neg", [output], ["binary.scale"], name="n1.weights.exact.node"))
    made.nodes.append(helper.make_node("Neg", ["binary.scale"], ["n1.signs"], name="n1.mul.node"))
    check(made.model("n1.signs"), numbers(2, 40, 3, 3), alone=False)


@pytest.mark.parametrize("form", [*FORMS, *OTHER_FORMS])
def test_every_form_of_signs(form: str) -> None:
    check(with_binary_layers(one_layer(form))[0], wholes(20, 40)["x"], alone=False)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(networks())
def test_random_networks(drawn: tuple[ModelProto, int, int]) -> None:
    model, channels, _ = drawn
    check(with_binary_layers(model)[0], wholes(4, channels, 16)["x"], alone=False)


def test_a_model_without_binary_layers_stays_the_same_object() -> None:
    model = one_layer()
    assert lowered(model, "INT8") == (model, {}, frozenset())
    assert lowered(model, "INT8").model is model


def _given_bits() -> ModelProto:
    made, own = File(), ConvAttributes(channels=40)
    stored = {**made.weights(8, 1, 1, 40), **made.floats(8, plain_activation())}
    model = made.model(made.add("BinaryConv2d", "x", stored, **own.values()))
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.INT32, ["n", "h", "w", 2]))
    return model


def _gives_bits() -> ModelProto:
    made = File()
    return made.model(made.pack("x"))


def _computed() -> ModelProto:
    made, own = File(), ConvAttributes(channels=40)
    stored = {**made.weights(8, 1, 1, 40), **made.floats(8, plain_activation())}
    output = made.add("BinaryConv2d", made.pack("x"), stored, **own.values())
    made.nodes.insert(0, helper.make_node("Neg", ["n1.m"], ["other"], name="neg"))
    made.nodes[-1].input[2] = "other"
    return made.model(output)


def _others() -> ModelProto:
    made, own = File(), ConvAttributes(channels=40)
    stored = {**made.weights(8, 1, 1, 40), **made.floats(8, plain_activation())}
    model = made.model(made.add("BinaryConv2d", made.pack("x"), stored, **own.values()))
    next(one for one in model.functions if one.name == "BinaryConv2d").node[-1].op_type = "Sub"
    return model


def _old() -> ModelProto:
    made = File()
    model = made.model(read_back(made, made.pack("x"), 40))
    next(entry for entry in model.opset_import if not entry.domain).version = 18
    return model


def _unheard() -> ModelProto:
    made = File()
    return made.model(made.add("BinaryNothing", made.pack("x"), {}))


REFUSED: dict[str, Callable[[], ModelProto]] = {
    "bits come from others, or go there": _given_bits, "bits come from others, or go there ": _gives_bits,
    "some have weights that are computed": _computed, "their functions are others": _others,
    "opset 18; expected 19 or later": _old, "some are not known here": _unheard,
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_written_is_refused_in_words(reason: str) -> None:
    with pytest.raises(ModelRefused, match=f"cannot be written in FP8: {reason.strip()}$"):
        lowered(REFUSED[reason](), "FP8")
