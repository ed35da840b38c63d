"""Resize over a grid of modes, scales and sizes: the engine answers as ONNX Runtime does, or the form is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from engines.errors import ModelRefused, ValuesRefused
from engines.reference import Reference
from engines.targets.openvino_forms import refuse_wrong_forms
from tests.engines.conftest import Built
from tests.support.onnx_models import FLOAT

COORDINATES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
POWERS = ([2, 2], [0.5, 0.5], [4, 0.25])
"""Of two: no coordinate is rounded, so that all runtimes find the same nearest pixel."""
SCALES = ([1.75, 0.625], [0.875, 2.5])
SIZES = ([7, 13], [3, 32], [1, 1])
SHAPES = ([5, 7], [8, 10], [11, 21], [24, 3])
Case = tuple[dict[str, Any], list[float] | None, list[int] | None]


def forms() -> Iterator[dict[str, Any]]:
    for nearest in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
        yield {"mode": "nearest", "nearest_mode": nearest}
    yield {"mode": "linear"}
    yield {"mode": "cubic"}
    yield {"mode": "cubic", "cubic_coeff_a": -0.5}


def grid() -> Iterator[Case]:
    for form, coordinates in itertools.product(forms(), COORDINATES):
        given = {**form, "coordinate_transformation_mode": coordinates}
        if form["mode"] != "nearest" or coordinates != "align_corners":
            yield from ((given, list(scales), None) for scales in POWERS)
        if form["mode"] != "nearest":
            yield from ((given, list(scales), None) for scales in SCALES)
            yield from ((given, None, sizes) for sizes in SIZES)
    for form in ("linear", "cubic"):
        yield {"mode": form, "antialias": 1}, [2.0, 1.5], None


def resizes(cases: list[Case]) -> onnx.ModelProto:
    """One output a case, all of the input `x` [n, 1, h, w]."""
    nodes, stored = [], []
    for number, (given, scales, sizes) in enumerate(cases):
        name = f"to{number}"
        if sizes is None:
            stored.append(helper.make_tensor(name, FLOAT, [2], scales))
        else:
            stored.append(helper.make_tensor(name, TensorProto.INT64, [2], sizes))
        inputs = ["x", "", name] if sizes is None else ["x", "", "", name]
        nodes.append(helper.make_node("Resize", inputs, [f"y{number}"], f"it{number}", axes=[2, 3], **given))
    outputs = [helper.make_tensor_value_info(node.output[0], FLOAT, [None] * 4) for node in nodes]
    x = helper.make_tensor_value_info("x", FLOAT, ["n", 1, "h", "w"])
    graph = helper.make_graph(nodes, "g", [x], outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_every_form_that_is_not_refused_is_right(built: Callable[[onnx.ModelProto], Built]) -> None:
    cases = list(grid())
    assert len(cases) > 120
    model = resizes(cases)
    reference = Reference(model)
    rows = [{"x": np.random.default_rng(0).standard_normal((1, 1, *shape), np.float32)} for shape in SHAPES]
    for row, got in zip(rows, built(model).answer(*rows), strict=True):
        for name, want in reference(row).items():
            assert got[name].shape == want.shape, cases[int(name[1:])]
            np.testing.assert_allclose(got[name], want, rtol=1e-3, atol=1e-3, err_msg=str(cases[int(name[1:])]))


WRONG: dict[str, tuple[Case, str]] = {
    "exclude_outside": (({"mode": "cubic", "exclude_outside": 1}, [2, 2], None), "pixels outside"),
    "antialias": (({"mode": "linear", "antialias": 1}, [2, 0.5], None), "where it shrinks, its antialias"),
    "antialias to a size": (({"mode": "cubic", "antialias": 1}, None, [7, 9]), "where it shrinks, its antialias"),
    "not larger": (({"keep_aspect_ratio_policy": "not_larger"}, None, [7, 9]), r"aspect ratio \(not_larger\)"),
    "not smaller": (({"keep_aspect_ratio_policy": "not_smaller"}, None, [7, 9]), r"aspect ratio \(not_smaller\)"),
}


@pytest.mark.parametrize(("case", "reason"), WRONG.values(), ids=WRONG)
def test_a_wrong_form_is_refused_by_name(built: Callable[[onnx.ModelProto], Built], case: Case, reason: str) -> None:
    with pytest.raises(ModelRefused, match=rf"answers these operators wrongly .*: Resize \(node 'it0'\): .*{reason}"):
        built(resizes([case]))


def test_all_of_them_are_listed() -> None:
    cases = [case for case, _ in WRONG.values()]
    with pytest.raises(ModelRefused) as refused:
        refuse_wrong_forms(resizes(cases))
    assert all(f"'it{number}'" in str(refused.value) for number in range(len(cases)))
    refuse_wrong_forms(resizes(list(grid())))


def test_an_axis_that_keeps_its_size_at_another_scale_is_refused(built: Callable[[onnx.ModelProto], Built]) -> None:
    """7 * 1.1 is 7 again, in steps of 1 / 1.1; 20 * 1.1 is 22, and one pixel is one at any scale."""
    model = resizes([({"mode": "linear"}, [2.0, 1.1], None)])
    rows = [{"x": np.random.default_rng(0).standard_normal((1, 1, 5, width), np.float32)} for width in (7, 20, 1)]
    refused, *answered = built(model).answer_all(rows)
    assert isinstance(refused, ValuesRefused)
    assert "Resize 'it0' leaves the size of an axis as it is, but not its scale" in str(refused)
    for row, got in zip(rows[1:], answered, strict=True):
        np.testing.assert_allclose(got["y0"], Reference(model)(row)["y0"], rtol=1e-4, atol=1e-4)
