"""Models for the passes of half precision, and what has to hold of every half graph."""

from __future__ import annotations

import os
from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper

from engines.legality import Verifier
from engines.passes.half import to_half
from engines.passes.half_slots import value_types
from engines.reference import Arrays, Reference
from tests.support.onnx_models import FLOAT, build

__all__ = ["HALF", "half_of", "mlp", "overflowing", "quantized", "types_of", "with_bodies"]

HALF = TensorProto.FLOAT16
F32 = np.float32
node = helper.make_node


def half_of(model: onnx.ModelProto, keep: Collection[str] = frozenset()) -> onnx.ModelProto:
    """Its half graph: of ONNX's rules and ours, with the same interface, and one that ONNX Runtime takes."""
    before = model.SerializeToString()
    half, note = to_half(model, keep)
    assert model.SerializeToString() == before, "the pass changed its argument"
    Verifier(model, None).verify_form("half precision", model, half)
    onnx.checker.check_model(half, full_check=True)
    onnx.shape_inference.infer_shapes(half, check_type=True, strict_mode=True)
    Reference(half)
    assert "half precision" in note
    return half


def types_of(model: onnx.ModelProto) -> dict[str, tuple[set[int], set[int]]]:
    """By node: the float types that it reads and makes."""
    types, floats = value_types(model), {FLOAT, HALF}
    return {
        one.name: (
            floats & {types.get(name, 0) for name in one.input},
            floats & {types.get(name, 0) for name in one.output},
        )
        for one in model.graph.node
    }


def mlp(weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """y = relu(x V + b) W + c."""
    nodes = [
        node("MatMul", ["x", "V"], ["p"], "first"), node("Add", ["p", "b"], ["s"], "shift"),
        node("Relu", ["s"], ["r"], "relu"), node("MatMul", ["r", "W"], ["q"], "second"),
        node("Add", ["q", "c"], ["y"], "last"),
    ]  # fmt: skip
    wide, out = weights["V"].shape[0], weights["W"].shape[1]
    return build(nodes, {"x": (FLOAT, ["N", wide])}, {"y": (FLOAT, ["N", out])}, weights, 21)


def overflowing() -> onnx.ModelProto:
    """x [N, 8] of about 1: `large` answers hundreds of thousands, and `scale` brings them back."""
    rng = np.random.default_rng(0)
    stored = {
        "L": rng.standard_normal((8, 8), dtype=F32) * F32(3e4), "tiny": F32(1e-5),
        "W": rng.standard_normal((8, 4), dtype=F32),
    }  # fmt: skip
    nodes = [
        node("MatMul", ["x", "L"], ["a"], "large"), node("Mul", ["a", "tiny"], ["b"], "scale"),
        node("Tanh", ["b"], ["t"], "bound"), node("MatMul", ["t", "W"], ["y"], "last"),
    ]  # fmt: skip
    return build(nodes, {"x": (FLOAT, ["N", 8])}, {"y": (FLOAT, ["N", 4])}, stored, 21)


def quantized(model: onnx.ModelProto, rows: list[Arrays]) -> onnx.ModelProto:
    """INT8 by NNCF, as the pipeline asks for it."""
    os.environ["NNCF_CI"] = "1"  # it sends telemetry else
    import nncf

    done: onnx.ModelProto = nncf.quantize(
        model, nncf.Dataset(rows), preset=nncf.QuantizationPreset.PERFORMANCE, subset_size=len(rows)
    )
    return done


def with_bodies() -> onnx.ModelProto:
    """x, flag -> y [4, 4]. Both branches read what is made in half around them; what they make goes into half again."""
    weights = np.random.default_rng(0).standard_normal((4, 4), dtype=F32)
    made = [helper.make_tensor_value_info(name, FLOAT, [4, 4]) for name in "bc"]
    then = helper.make_graph([node("Mul", ["a", "W"], ["b"], "inner")], "then", [], made[:1])
    other = helper.make_graph([node("Neg", ["a"], ["c"], "outer")], "else", [], made[1:])
    nodes = [
        node("MatMul", ["x", "W"], ["a"], "before"),
        node("If", ["flag"], ["z"], "if", then_branch=then, else_branch=other),
        node("MatMul", ["z", "W"], ["y"], "after"),
    ]  # fmt: skip
    return build(
        nodes, {"x": (FLOAT, [4, 4]), "flag": (TensorProto.BOOL, [])}, {"y": (FLOAT, [4, 4])}, {"W": weights}, 21
    )
