"""Half precision, emulated: against NumPy that computes in it, against a bound, and infinities by layer."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines.canonical import canonical
from engines.passes.emulated_half import count_infinities, emulate_half
from engines.passes.half import to_half
from engines.passes.half_slots import value_types
from engines.reference import Reference
from tests.passes.answers import rows_of
from tests.passes.halves import HALF, mlp, overflowing, quantized, with_bodies
from tests.passes.networks import encoder, light, recurrent
from tests.support.onnx_models import FLOAT, build

node = helper.make_node
F16, F32, F64 = np.float16, np.float32, np.float64
HALF_ROUNDOFF, SUBNORMAL, FLOAT_ROUNDOFF = 2.0**-11, 2.0**-25, 2.0**-24
"""Of FP16, relative; of FP16 below 6.1e-5, absolute; of FP32."""
RNG = np.random.default_rng(0)


def emulated(model: onnx.ModelProto, keep: frozenset[str] = frozenset()) -> onnx.ModelProto:
    done = emulate_half(model, keep)
    onnx.checker.check_model(done, full_check=True)
    assert list(done.graph.input) == list(model.graph.input)
    assert list(done.graph.output) == list(model.graph.output)
    types = value_types(done)
    computing = [one for one in done.graph.node if one.op_type != "Cast"]
    assert not any(types[name] == HALF for one in computing for name in one.output), "nothing but Casts makes FP16"
    return done


def test_an_mlp_is_bit_for_bit_what_numpy_computes_in_half() -> None:
    """The numbers are multiples of such powers of two that FP32 adds them up without an error, in any order; what
    remains is the rounding to half, after each operator. NumPy adds halves in half.
    """
    weights = {
        "V": np.round(RNG.standard_normal((64, 32)) * 16) / 16, "b": np.round(RNG.standard_normal(32) * 128) / 128,
        "W": np.round(RNG.standard_normal((32, 8)) * 16) / 16, "c": np.round(RNG.standard_normal(8) * 128) / 128,
    }  # fmt: skip
    x = np.round(RNG.standard_normal((100, 64)) * 8) / 8
    model = mlp({name: array.astype(F32) for name, array in weights.items()})
    got = Reference(emulated(model))({"x": x.astype(F32)})["y"]
    first = (x @ weights["V"]).astype(F16) + weights["b"].astype(F16)
    want = (np.maximum(first, F16(0)).astype(F64) @ weights["W"]).astype(F16) + weights["c"].astype(F16)
    assert want.dtype == F16
    np.testing.assert_array_equal(got, want.astype(F32))
    assert np.any(got != Reference(model)({"x": x.astype(F32)})["y"]), "rounding has to show"


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul"])
def test_elementwise_operators_are_those_of_numpy(op_type: str) -> None:
    """FP32 has 24 digits, 2 * 11 + 2: rounded to it and then to half, the result is the one rounded once (Figueroa
    1995, "When is double rounding innocuous?").
    """
    size = 4096
    a, b = (RNG.standard_normal((1, size)) * np.exp2(RNG.integers(-18, 6, size)) for _ in range(2))
    nodes = [
        node("MatMul", ["one", "a"], ["p"], "left"), node("MatMul", ["one", "b"], ["q"], "right"),
        node(op_type, ["p", "q"], ["y"]),
    ]  # fmt: skip
    ends = {name: (FLOAT, [1, size]) for name in "ab"}
    model = build(nodes, ends, {"y": (FLOAT, [1, size])}, {"one": np.ones((1, 1), F32)}, 21)
    got = Reference(emulated(model))({"a": a.astype(F32), "b": b.astype(F32)})["y"]
    function = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}[op_type]
    np.testing.assert_array_equal(got, function(a.astype(F32).astype(F16), b.astype(F32).astype(F16)).astype(F32))


def bounded_mlp(x: np.ndarray, w: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """y in FP64, and how far half precision may be from it: a running error analysis (Higham 2002, section 3.3).

    Rounding v that is off by e adds u (|v| + e) + s, with u = 2**-11 and s = 2**-25. A product of A off by E and B off
    by F is off by |A| F + E |B| + E F, and k terms summed in FP32 by k 2**-24 (|A| + E)(|B| + F) more.
    """

    def rounded(value: np.ndarray, off: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        return value, off + HALF_ROUNDOFF * (np.abs(value) + off) + SUBNORMAL

    def product(
        left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        (a, e), (b, f) = left, right
        summing = a.shape[1] * FLOAT_ROUNDOFF * ((np.abs(a) + e) @ (np.abs(b) + f))
        return rounded(a @ b, np.abs(a) @ f + e @ np.abs(b) + e @ f + summing)

    def total(
        left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        return rounded(left[0] + right[0], left[1] + right[1])

    hidden, off = total(product(rounded(x), rounded(w["V"])), rounded(w["b"]))
    return total(product((np.maximum(hidden, 0), off), rounded(w["W"])), rounded(w["c"]))


def test_an_mlp_is_as_far_from_fp64_as_half_may_be_and_no_nearer_than_it_is() -> None:
    drawn = {
        "V": RNG.standard_normal((64, 32)) / 8, "b": RNG.standard_normal(32), "W": RNG.standard_normal((32, 8)) / 6,
        "c": RNG.standard_normal(8),
    }  # fmt: skip
    weights = {name: array.astype(F32) for name, array in drawn.items()}
    x = RNG.standard_normal((200, 64)).astype(F32)
    want, bound = bounded_mlp(x.astype(F64), {name: array.astype(F64) for name, array in weights.items()})
    off = np.abs(Reference(emulated(mlp(weights)))({"x": x})["y"] - want)
    assert np.all(off <= bound)
    assert bound.max() < 2.0**-5 * np.abs(want).max(), "the bound says something"
    assert np.median(off / np.abs(want)) > HALF_ROUNDOFF / 8, "FP32 would be a thousand times nearer"


@pytest.mark.parametrize("name", ["squeezenet", "densenet121"])
def test_a_network_is_as_near_to_its_half_graph_as_that_is_to_fp32(name: str) -> None:
    """ONNX Runtime runs the half graph too, with Casts around what it has no code for in half: the same roundings, and
    sums in other orders.
    """
    model, _ = canonical(light(name))
    row = rows_of(model)[0]
    want, got, half = (Reference(one)(row) for one in (model, emulated(model), to_half(model)[0]))
    for output, exact in want.items():
        assert 0 < np.abs(got[output] - exact).max() < 0.02 * np.abs(exact).max()
        assert np.abs(got[output] - half[output]).max() < 0.02 * np.abs(exact).max()


@pytest.mark.parametrize("op_type", ["LSTM", "GRU"])
def test_recurrent_layers_and_transformers(op_type: str) -> None:
    for model, row in (
        (recurrent(op_type), {"x": RNG.standard_normal((7, 3, 3), dtype=F32)}),
        (encoder(opset=18), {"x": RNG.integers(0, 50, (2, 9))}),
    ):
        known, _ = canonical(model)
        want, got = (Reference(one)(row)["y"] for one in (known, emulated(known)))
        assert 0 < np.abs(got - want).max() < 0.02


def test_a_quantized_network() -> None:
    model, _ = canonical(light("squeezenet"))
    rows = rows_of(model, count=3)
    int8 = quantized(model, rows)
    for name, want in Reference(int8)(rows[0]).items():
        got = Reference(emulated(int8))(rows[0])[name]
        assert 0 < np.abs(got - want).max() < 0.02 * np.abs(want).max()
    assert count_infinities(int8, rows) == {}


def test_bodies_are_not_rounded_and_what_they_read_is() -> None:
    model = with_bodies()
    W = onnx.numpy_helper.to_array(model.graph.initializer[0])
    half, x = W.astype(F16).astype(F64), RNG.standard_normal((4, 4), dtype=F32)
    before = (x.astype(F16).astype(F64) @ half).astype(F16).astype(F32)
    for flag in (True, False):
        inside = (before * W if flag else -before).astype(F16).astype(F64)
        got = Reference(emulated(model))({"x": x, "flag": np.array(flag)})["y"]
        np.testing.assert_allclose(got, (inside @ half).astype(F16), rtol=2.0**-10, atol=2.0**-18)


def test_what_is_kept_is_not_rounded() -> None:
    model = overflowing()
    row = {"x": RNG.standard_normal((5, 8), dtype=F32)}
    every = frozenset(one.name for one in model.graph.node)
    assert emulate_half(model, every).graph.node == model.graph.node
    np.testing.assert_array_equal(Reference(emulate_half(model, every))(row)["y"], Reference(model)(row)["y"])


def test_a_layer_that_overflows_is_named_and_cured() -> None:
    """`large` first; then what reads it, as its answers are too large for half whoever has made them."""
    model = overflowing()
    rows = [{"x": RNG.standard_normal((5, 8), dtype=F32)} for _ in range(3)]
    large = np.concatenate([row["x"] @ onnx.numpy_helper.to_array(model.graph.initializer[0]) for row in rows])
    expected = int((np.abs(large) >= 65520).sum())
    assert 0 < expected < large.size
    assert count_infinities(model, rows) == {"large": expected}
    assert count_infinities(model, iter(rows), {"large"}) == {"scale": expected}
    kept = frozenset({"large", "scale"})
    assert count_infinities(model, rows, kept) == {}
    for row in rows:
        want, got = (Reference(one)(row)["y"] for one in (model, emulated(model, kept)))
        np.testing.assert_allclose(got, want, atol=0.02)
        wrong = Reference(emulated(model))(row)["y"]
        assert not np.allclose(wrong, want, atol=0.02)


def test_a_network_that_overflows_is_cured_layer_by_layer() -> None:
    """With its random weights, values grow through ShuffleNet."""
    model, _ = canonical(light("shufflenet"))
    rows = rows_of(model, count=2)
    keep: set[str] = set()
    for _ in range(20):
        found = count_infinities(model, rows, keep)
        if not found:
            break
        assert not keep & found.keys()
        keep |= found.keys()
    assert keep
    assert count_infinities(model, rows, keep) == {}
    for name, want in Reference(model)(rows[0]).items():
        got = Reference(emulate_half(model, keep))(rows[0])[name]
        assert np.abs(got - want).max() < 0.05 * np.abs(want).max()
        assert np.isnan(Reference(emulate_half(model))(rows[0])[name]).any()


def test_infinities_that_were_there_before_do_not_count() -> None:
    nodes = [node("MatMul", ["x", "W"], ["a"], "product"), node("Add", ["a", "mask"], ["y"], "masked")]
    mask = np.array([0, -np.inf, 0, 0], F32)
    model = build(nodes, {"x": (FLOAT, [1, 4])}, {"y": (FLOAT, [1, 4])}, {"W": np.eye(4, dtype=F32), "mask": mask}, 21)
    assert count_infinities(model, [{"x": np.ones((1, 4), F32)}]) == {}
    assert count_infinities(model, [{"x": np.array([[1, 1, 7e4, 6.5e4]], F32)}]) == {"product": 1}


def test_a_model_of_halves_is_emulated_in_its_own_types() -> None:
    weights = {"W": RNG.standard_normal((4, 4)).astype(F16)}
    nodes = [node("MatMul", ["x", "W"], ["a"]), node("Tanh", ["a"], ["y"])]
    model = build(nodes, {"x": (HALF, ["N", 4])}, {"y": (HALF, ["N", 4])}, weights, 21)
    x = RNG.standard_normal((50, 4)).astype(F16)
    got = Reference(emulated(model))({"x": x})["y"]
    product = (x.astype(F64) @ weights["W"].astype(F64)).astype(F16)
    np.testing.assert_allclose(got.astype(F64), np.tanh(product.astype(F64)), rtol=2.0**-10, atol=2.0**-20)


def test_whole_numbers_and_names_are_left_alone() -> None:
    nodes = [
        node("MatMul", ["x", "W"], ["a"]), node("ArgMax", ["a"], ["k"], keepdims=0), node("Relu", ["a"], ["y"]),
    ]  # fmt: skip
    outputs = {"y": (FLOAT, [4, 4]), "k": (TensorProto.INT64, [4])}
    model = build(nodes, {"x": (FLOAT, [4, 4])}, outputs, {"W": np.eye(4, dtype=F32)[::-1].copy()}, 21)
    done = emulated(model)
    assert {"MatMul_0", "ArgMax_0", "Relu_0"} <= {one.name for one in done.graph.node}
    x = RNG.standard_normal((4, 4), dtype=F32)
    np.testing.assert_array_equal(Reference(done)({"x": x})["k"], x[:, ::-1].astype(F16).argmax(axis=0))
