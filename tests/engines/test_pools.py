"""Pools over a grid of kernels, strides, pads and sizes: the engine answers each as ONNX Runtime does."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines.errors import ModelRefused
from engines.passes.pool_ends import with_pool_ends
from engines.reference import Reference
from tests.engines.conftest import Built
from tests.support.onnx_models import FLOAT

SIZES = range(5, 17)


def grid() -> Iterator[tuple[str, dict[str, Any]]]:
    """Of one spatial axis. With SAME, ONNX Runtime heeds no dilation and takes no stride beyond the kernel."""
    for k, s, d, pads in itertools.product((1, 2, 3), (2, 3), (1, 2), [(0, 0), (1, 1), (0, 1), (1, 0)]):
        if max(pads) < k and (d == 1 or pads == (1, 1)):
            given = {"kernel_shape": [k], "strides": [s], "dilations": [d], "pads": pads, "ceil_mode": 1}
            yield "MaxPool", given
            yield from (("AveragePool", {**given, "count_include_pad": included}) for included in (0, 1))
    for op, pad, k, s in itertools.product(("MaxPool", "AveragePool"), ("SAME_UPPER", "SAME_LOWER"), (2, 3), (2,)):
        yield op, {"kernel_shape": [k], "strides": [s], "auto_pad": pad, "ceil_mode": 1}
    for op, k, s in itertools.product(("MaxPool", "AveragePool"), (1, 2, 3), (2, 3)):
        yield op, {"kernel_shape": [k], "strides": [s], "auto_pad": "VALID", "ceil_mode": 1}


def pools(
    cases: list[tuple[str, dict[str, Any]]], shape: list[int | str], kind: int = FLOAT, opset: int = 21
) -> onnx.ModelProto:
    """One output a case, all of the input `x`."""
    names = [f"y{number}" for number in range(len(cases))]
    nodes = [helper.make_node(op, ["x"], [y], y, **given) for y, (op, given) in zip(names, cases, strict=True)]
    outputs = [helper.make_tensor_value_info(y, kind, [None] * len(shape)) for y in names]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", kind, shape)], outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def assert_same(want: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray]) -> None:
    for name, array in want.items():
        assert got[name].shape == array.shape, name
        np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


def test_every_size_is_pooled_as_the_reference_does(built: Callable[[onnx.ModelProto], Built]) -> None:
    cases = list(grid())
    assert len(cases) > 60
    model = pools(cases, ["n", 2, "a"])
    rows = [{"x": np.random.default_rng(size).standard_normal((2, 2, size), np.float32)} for size in SIZES]
    reference = Reference(model)
    for row, got in zip(rows, built(model).answer(*rows), strict=True):
        assert_same(reference(row), got)


PLANES: list[tuple[str, dict[str, Any]]] = [
    (op, {"kernel_shape": kernel, "strides": strides, "pads": pads, "ceil_mode": 1, **more})
    for op, more in (("MaxPool", {}), ("AveragePool", {}), ("AveragePool", {"count_include_pad": 1}))
    for kernel, strides, pads in (([3, 3], [2, 2], [0] * 4), ([3, 3], [3, 3], [1] * 4), ([2, 2], [7, 7], [0] * 4),
                                  ([3, 2], [2, 3], [1, 0, 0, 1]), ([2, 2], [2, 2], [1] * 4))
]  # fmt: skip


@pytest.mark.parametrize("sizes", [["h", "w"], [12, 15], [11, 14]], ids=str)
def test_planes_of_any_and_of_fixed_size(built: Callable[[onnx.ModelProto], Built], sizes: list[int | str]) -> None:
    model, reference = (pools(PLANES, ["n", 3, *sizes]) for _ in range(2))
    shapes = [[12, 15], [11, 14], [9, 22]] if "h" in sizes else [sizes]
    rows = [{"x": np.random.default_rng(0).standard_normal((1, 3, *shape), np.float32)} for shape in shapes]  # type: ignore[arg-type]
    for row, got in zip(rows, built(model).answer(*rows), strict=True):
        assert_same(Reference(reference)(row), got)


def test_a_pool_behind_a_convolution(built: Callable[[onnx.ModelProto], Built]) -> None:
    """The type of its data is declared nowhere, and a mean hides one wrong row of many."""
    rng = np.random.default_rng(0)
    model = pools(PLANES[-1:], ["n", 3, "h", "w"])
    model.graph.node[0].input[0] = "c"
    model.graph.node.insert(0, helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4))
    model.graph.initializer.append(onnx.numpy_helper.from_array(rng.standard_normal((4, 3, 3, 3), np.float32), "w"))
    rows = [{"x": rng.standard_normal((1, 3, size, size), np.float32)} for size in (32, 33, 96)]
    for row, got in zip(rows, built(model).answer(*rows), strict=True):
        assert_same(Reference(model)(row), got)


def test_places_of_the_maxima_are_cut_too(built: Callable[[onnx.ModelProto], Built]) -> None:
    model = pools([("MaxPool", {"kernel_shape": [2, 2], "strides": [3, 3], "ceil_mode": 1})], ["n", 2, "h", "w"])
    model.graph.node[0].output.append("places")
    model.graph.output.append(helper.make_tensor_value_info("places", TensorProto.INT64, [None] * 4))
    rows = [{"x": np.random.default_rng(0).standard_normal((2, 2, *shape), np.float32)} for shape in ((6, 9), (7, 8))]
    for row, got in zip(rows, built(model).answer(*rows), strict=True):
        assert_same(Reference(model)(row), got)


def test_what_the_engine_does_right_is_left_alone() -> None:
    for given in ({"ceil_mode": 0, "count_include_pad": 1}, {"ceil_mode": 1}, {}):
        model = pools([("AveragePool", {"kernel_shape": [3], **given})], ["n", 2, "a"])
        assert with_pool_ends(model) is model


def test_an_old_opset_is_refused_with_the_reason() -> None:
    model = pools([("MaxPool", {"kernel_shape": [3], "ceil_mode": 1})], ["n", 2, "a"], opset=10)
    with pytest.raises(ModelRefused, match=r"pools with ceil_mode are read in opset 13 and later; .* opset 10"):
        with_pool_ends(model)


def test_an_lp_pool_with_ceil_mode_is_refused_by_name(built: Callable[[onnx.ModelProto], Built]) -> None:
    model = pools([("LpPool", {"kernel_shape": [2], "strides": [2], "ceil_mode": 1})], ["n", 2, "a"])
    with pytest.raises(ModelRefused, match=r"LpPool \(node 'y0'\): its last window is not as ceil_mode asks for"):
        built(model)
