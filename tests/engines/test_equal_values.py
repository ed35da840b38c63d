"""Of equal values, the one that ONNX asks for is chosen."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines.reference import Reference
from tests.engines.conftest import Built
from tests.support.onnx_models import FLOAT

TIES = np.array([[1, 2, 2, 0, 2, 1, 0, 0], [5, 5, 5, 5, 5, 5, 5, 5]], np.float32)


def choices(kind: int, axis: int, size: int) -> onnx.ModelProto:
    """Every way of choosing along an axis of [n, size, 1] or [n, 1, size]."""
    shape = ["n", 1, 1]
    shape[axis] = size
    nodes, stored = [], []
    for k in (1, 3, size):
        for largest in (0, 1):
            name = f"{k}_{largest}"
            stored.append(helper.make_tensor(f"k{name}", TensorProto.INT64, [1], [k]))
            outputs = [f"v{name}", f"i{name}"]
            nodes.append(helper.make_node("TopK", ["x", f"k{name}"], outputs, axis=axis, largest=largest))
    for last in (0, 1):
        for op in ("ArgMax", "ArgMin"):
            nodes.append(helper.make_node(op, ["x"], [f"i{op}{last}"], axis=axis, select_last_index=last))
    outputs = [
        helper.make_tensor_value_info(name, kind if name[0] == "v" else TensorProto.INT64, [None] * 3)
        for node in nodes
        for name in node.output
    ]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", kind, shape)], outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize(("kind", "dtype"), [(FLOAT, np.float32), (TensorProto.INT32, np.int32)])
@pytest.mark.parametrize(("axis", "repeats"), [(1, 1), (2, 1), (2, 40)])
def test_places_of_equal_values(
    built: Callable[[onnx.ModelProto], Built], kind: int, dtype: type, axis: int, repeats: int
) -> None:
    values = np.tile(TIES, (1, repeats)).astype(dtype)
    x = np.expand_dims(values, 3 - axis)
    model = choices(kind, axis, values.shape[1])
    want, (got,) = Reference(model)({"x": x}), built(model).answer({"x": x})
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)
