"""Bits stay bits through what people put between a layer and the next sign, and ties fall as they fell in floats.

All constants are whole numbers or halves of them, so every sum is exact, and answers are compared bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from engines.passes.binary_layers import with_binary_layers
from engines.plugins.bodies import with_bodies
from engines.plugins.extension import extension_path
from engines.plugins.ops import DOMAIN
from engines.reference import Reference
from tests.plugins.binary_networks import FORMS, OTHER_FORMS, Network
from tests.plugins.test_binary_layers import on_bits, wholes

node = helper.make_node
compiled = pytest.mark.skipif(extension_path() is None, reason="needs a C++ compiler when bitserve is installed")
STEPS = ("norm", "rising norm", "prelu", "falling prelu", "relu", "leaky", "scale", "shift", "clip", "pool")
HALVES = np.array([-2, -1, -0.5, 0.5, 1, 2])


def step(made: Network, kind: str, x: str, channels: int, **pool: Any) -> str:
    """One node behind x [rows, channels, high, wide]."""
    y, rng = made.name(kind.replace(" ", "_")), made.rng

    def store(name: str, array: np.ndarray, places: bool = True) -> str:
        shape = (channels, 1, 1) if places else (channels,)
        made.stored[f"{y}.{name}"] = np.broadcast_to(array.reshape(-1, 1, 1) if places else array, shape).astype("f4")
        return f"{y}.{name}"

    if kind.endswith("norm"):
        factors = np.abs(HALVES) if kind == "rising norm" else HALVES
        stored = [
            store("gamma", rng.choice(factors, channels), False), store("beta", rng.integers(-2, 3, channels), False),
            store("mean", rng.integers(-4, 5, channels), False), store("var", rng.choice([1, 4, 16], channels), False),
        ]  # fmt: skip
        made.nodes.append(node("BatchNormalization", [x, *stored], [y], name=y, epsilon=0.0))
    elif kind.endswith("prelu"):
        slopes = [-0.5, 0.25] if kind == "falling prelu" else [0, 0.25, 0.5]
        made.nodes.append(node("PRelu", [x, store("slope", rng.choice(slopes, channels))], [y], name=y))
    elif kind == "scale":
        made.nodes.append(node("Mul", [store("factor", rng.choice(HALVES, channels)), x], [y], name=y))
    elif kind == "shift":
        made.nodes.append(node("Add", [x, store("number", rng.integers(-3, 4, channels))], [y], name=y))
    elif kind == "clip":
        made.stored.update({"minus_three": np.array(-3, np.float32), "four": np.array(4, np.float32)})
        made.nodes.append(node("Clip", [x, "minus_three", "four"], [y], name=y))
    elif kind == "pool":
        made.nodes.append(node("MaxPool", [x], [y], name=y, **{"kernel_shape": [2, 2], **pool}))
    else:
        keys = {"alpha": 0.5} if kind == "leaky" else {}
        made.nodes.append(node({"leaky": "LeakyRelu", "relu": "Relu"}[kind], [x], [y], name=y, **keys))
    return y


def between(*kinds: str, seed: int = 0, form: str = "x >= 0", **pool: Any) -> onnx.ModelProto:
    """Two layers, the steps between them."""
    made = Network(seed)
    value = made.conv(made.sign("x"), 20, 33, pads=[1, 1, 1, 1])
    for kind in kinds:
        value = step(made, kind, value, 33, **pool)
    return made.model(made.conv(made.sign(value, form), 33, 8, pads=[1, 1, 1, 1]), 20)


def check(model: onnx.ModelProto, rows: int = 100, channels: int = 20) -> None:
    rewritten, _ = with_binary_layers(model)
    inputs = wholes(rows, channels)
    expected = Reference(model)(inputs)["y"]
    np.testing.assert_array_equal(Reference(with_bodies(rewritten))(inputs)["y"], expected)
    np.testing.assert_array_equal(on_bits(model, inputs), expected)


def kinds_of(model: onnx.ModelProto) -> list[str]:
    return [one.op_type for one in with_binary_layers(model)[0].graph.node]


@compiled
@pytest.mark.parametrize("form", ["x >= 0", "x > 0", "sign(sign(x) + 0.1)"])
@pytest.mark.parametrize(
    "kinds", [("norm",), ("norm", "prelu"), ("shift", "prelu", "shift"), ("relu", "norm"), ("scale", "clip", "norm")],
    ids=" ".join,
)  # fmt: skip
def test_a_chain_becomes_thresholds(kinds: tuple[str, ...], form: str) -> None:
    model = between(*kinds, form=form)
    assert kinds_of(model) == ["BinaryPack", "BinaryThreshold2d", "BinaryConv2d"]
    check(model)


@compiled
@pytest.mark.parametrize("keys", [{}, {"strides": [2, 2]}, {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1]}], ids=str)
@pytest.mark.parametrize(
    "kinds", [("pool",), ("norm", "pool"), ("pool", "norm"), ("norm", "pool", "norm"), ("pool", "scale", "prelu")],
    ids=" ".join,
)  # fmt: skip
def test_pools_become_pools_of_bits(kinds: tuple[str, ...], keys: dict[str, Any]) -> None:
    """Behind a pool, factors of both signs: a channel that falls is negated before it, and in the next weights."""
    model = between(*kinds, **keys)
    assert kinds_of(model) == ["BinaryPack", "BinaryThreshold2d", "BinaryMaxPool", "BinaryConv2d"]
    check(model)


@compiled
@pytest.mark.parametrize("form", [*FORMS, *OTHER_FORMS])
def test_signs_may_be_pooled(form: str) -> None:
    made = Network(1)
    pooled = step(made, "pool", made.sign("x", form), 20, strides=[2, 2])
    model = made.model(made.conv(pooled, 20, 8), 20)
    falls = form in ("x < 0, the other way round", "where(zeros_like(x) >= x, -ones_like(x), ones_like(x))")
    names = with_binary_layers(model)[1]
    if form == "x < 0, the other way round":
        assert not names
        assert falls
        return
    kinds = kinds_of(model)
    assert kinds.count("BinaryMaxPool") == (2 if form == "sign(x)" else 1)
    assert "MaxPool" not in kinds
    check(model, 50)


@compiled
def test_a_product_takes_thresholds_from_a_product() -> None:
    made = Network(4)
    made.nodes.append(node("Flatten", [made.sign("x")], ["flat"], name="flatten"))
    for name, shape in (("first", (1280, 65)), ("second", (65, 9))):
        made.stored[name] = made.rng.choice([-1, 1], shape).astype(np.float32)
    made.stored.update(c=made.rng.choice(HALVES, 65).astype(np.float32), b=made.rng.integers(-3, 4, 65).astype("f4"))
    made.nodes += [
        node("MatMul", ["flat", "first"], ["m"], name="one"), node("Mul", ["c", "m"], ["s"], name="scale"),
        node("Add", ["s", "b"], ["a"], name="shift"),
    ]  # fmt: skip
    made.nodes.append(node("MatMul", [made.sign("a", "sign(x)"), "second"], ["y"], name="two"))
    model = made.model("y", 20)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, ["N", 9]))
    assert [kind for kind in kinds_of(model) if kind.startswith("Binary")] == [
        "BinaryPack", "BinaryGemm", "BinaryPack", "BinaryGemm", "BinaryPack", "BinaryGemm",
    ]  # fmt: skip
    check(model)


@compiled
def test_a_product_takes_a_threshold_a_feature() -> None:
    made = Network(6)
    made.stored.update(
        limits=made.rng.integers(-2, 3, 40).astype("f4"), w=made.rng.choice([-1, 1], (40, 9)).astype("f4")
    )
    made.nodes += [
        node("GlobalMaxPool", ["x"], ["mean"], name="mean"), node("Flatten", ["mean"], ["flat"], name="flat"),
        node("Greater", ["flat", "limits"], ["c"], name="compare"),
        node("Where", ["c", "one", "minus"], ["s"], name="s"), node("MatMul", ["s", "w"], ["m"], name="product"),
    ]  # fmt: skip
    model = made.model("m", 40)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, ["N", 9]))
    assert kinds_of(model)[-2:] == ["BinaryPack", "BinaryGemm"]
    check(model, 100, 40)


@compiled
def test_a_constant_that_makes_places_of_sums_keeps_them_floats() -> None:
    """Sums of one place, and a number that is written out for 4 x 4 of them."""
    made = Network(7)
    first = made.conv(made.sign("x"), 20, 33, 8)
    made.stored["places"] = np.ones((1, 33, 4, 4), np.float32)
    made.nodes.append(node("Add", [first, "places"], ["wide"], name="wide"))
    model = made.model(made.conv(made.sign("wide"), 33, 8, pads=[1, 1, 1, 1]), 20)
    assert "BinaryThreshold2d" not in kinds_of(model)
    check(model, 20)


def reasons(model: onnx.ModelProto) -> dict[str, str]:
    """Why thresholds were not taken."""
    left: dict[str, str] = {}
    with_binary_layers(model, left)
    return left


def padded_with_ones() -> onnx.ModelProto:
    """The second layer's border is +1 in every channel, negated ones too."""
    made = Network()
    value = made.conv(made.sign("x"), 20, 33, pads=[1, 1, 1, 1])
    made.stored.update(amounts=np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    sign = made.sign(step(made, "norm", step(made, "pool", value, 33), 33))
    made.nodes.append(node("Pad", [sign, "amounts", "one"], ["padded"], name="pad"))
    return made.model(made.conv("padded", 33, 8), 20)


def read_as_floats() -> onnx.ModelProto:
    made = Network()
    value = made.conv(made.sign("x"), 20, 33, pads=[1, 1, 1, 1])
    other = made.conv(made.sign(step(made, "relu", value, 33)), 33, 33, pads=[1, 1, 1, 1])
    made.nodes.append(node("Add", [other, value], ["sum"], name="sum"))
    return made.model("sum", 20)


KEPT = {
    "a sign that changes twice": (
        lambda: between("shift", "falling prelu", "shift"),
        "the sign of what is computed of its sums changes more than once as they rise",
    ),
    "sums that are read": (read_as_floats, "others read its sums, too"),
    "negated channels beside a border": (
        padded_with_ones,
        "a factor behind its pool is negative, and 'conv6' takes no negated channel",
    ),
}


@compiled
@pytest.mark.parametrize("name", KEPT)
def test_floats_stay_with_a_reason(name: str) -> None:
    make, reason = KEPT[name]
    model = make()
    assert reasons(model) == {"conv2": reason}
    assert "BinaryThreshold2d" not in kinds_of(model)
    check(model)


@st.composite
def networks(draw: st.DrawFn) -> tuple[onnx.ModelProto, int, int]:
    """A model, its input's channels and how many layers it has: residual sums, shared signs, several readers."""
    made = Network(draw(st.integers(0, 2**16)))
    channels = first = draw(st.integers(1, 70))
    value, layers = "x", 0
    for _ in range(draw(st.integers(1, 3))):
        sign = made.sign(value, draw(st.sampled_from([*FORMS, *OTHER_FORMS])))
        filters, kernel = draw(st.integers(1, 70)), draw(st.sampled_from([1, 2, 3]))
        stride, dilation = draw(st.sampled_from([1, 1, 2])), draw(st.sampled_from([1, 1, 2]))
        pads = draw(st.sampled_from([[1, 1, 1, 1], [2, 1, 1, 2], [1, 2, 2, 1], [0, 2, 2, 0], [2, 0, 0, 2]]))
        keys = {"strides": [stride] * 2, "dilations": [dilation] * 2, "pads": pads, "bias": draw(st.booleans())}
        last = value = made.conv(sign, channels, filters, kernel, **keys)
        layers += 1
        for kind in draw(st.lists(st.sampled_from(STEPS[:-1]), max_size=3)):
            value = step(made, kind, value, filters)
        reader = draw(st.sampled_from(["none", "shared sign", "own sums", "none"]))
        if reader == "shared sign":
            other = made.conv(sign, channels, filters, kernel, **keys)
            layers += 1
        if reader != "none":
            total = made.name("sum")
            made.nodes.append(node("Add", [value, other if reader == "shared sign" else last], [total], name=total))
            value = total
        if draw(st.booleans()):
            value = step(made, "pool", value, filters, kernel_shape=[2, 1], pads=[0, 0, 1, 0])
        channels = filters
    made.nodes.append(node("Neg", [value], ["negative"], name="last"))
    return made.model("negative", first, 16), first, layers


@compiled
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(networks())
def test_random_networks_answer_the_same(drawn: tuple[onnx.ModelProto, int, int]) -> None:
    model, channels, layers = drawn
    rewritten, names = with_binary_layers(model)
    assert len(names) == layers
    assert DOMAIN in {one.domain for one in rewritten.graph.node}
    inputs = wholes(6, channels, 16)
    expected = Reference(model)(inputs)["y"]
    np.testing.assert_array_equal(Reference(with_bodies(rewritten))(inputs)["y"], expected)
    np.testing.assert_array_equal(on_bits(model, inputs), expected)
