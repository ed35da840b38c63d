"""Sums beside binary layers that those do not add themselves: less is moved between them, and no number changes."""

from __future__ import annotations

import numpy as np
import onnx
import openvino as ov
import pytest
from onnx import helper

from benchmarks.networks import binary_resnet18
from engines.canonical import canonical
from engines.plugins.extension import extension_path
from engines.reference import Reference
from engines.targets import openvino as target
from engines.targets.openvino_profile import timed_layers
from engines.targets.openvino_sums import keep_sums_in_rows
from tests.plugins.binary_networks import Network

pytestmark = pytest.mark.skipif(extension_path() is None, reason="needs a C++ compiler when bitserve is installed")
SIZE = 64


@pytest.fixture(autouse=True)
def layers_add_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a sum would be left where others read one of its addends alone, which no network here has."""
    monkeypatch.setattr(target, "add_in_layers", lambda graph: 0)


def moved(graph: ov.Model, image: np.ndarray) -> int:
    return sum(layer.op_type == "Reorder" for layer in timed_layers(graph, {"image": image}, 1))


def answers(graph: ov.Model, **inputs: np.ndarray) -> np.ndarray:
    (name,) = (port.get_any_name() for port in graph.outputs)
    return target.runner(target.compile_model(graph, 1, 1), [name])(inputs)[name]


def test_less_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last digits of what the float layers beside such sums answer depend on the order that they read."""
    model, _ = canonical(binary_resnet18(SIZE))
    image = np.random.default_rng(2).standard_normal((2, 3, SIZE, SIZE)).astype(np.float32)
    in_rows = target.read_model(model)
    monkeypatch.setattr(target, "keep_sums_in_rows", lambda graph: 0)
    plain = target.read_model(model)
    found, wanted = answers(in_rows, image=image), answers(plain, image=image)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert moved(in_rows, image) <= moved(plain, image) - 16, "one less a layer at least"


def summed(with_: str, size: int | str = 8) -> onnx.ModelProto:
    """A binary layer of 40 channels, and the sum of it and its input, or of one number a channel."""
    made = Network()
    made.stored["channels"] = np.arange(40, dtype=np.float32).reshape(1, 40, 1, 1)
    layer = made.conv(made.sign("x"), 40, 40, pads=[1, 1, 1, 1])
    made.nodes.append(helper.make_node("Add", [with_, layer], ["sum"], name="sum"))
    return made.model("sum", 40, size)


@pytest.mark.parametrize(
    ("model", "count", "left"), [(summed("x"), 1, ["y"]), (summed("channels"), 0, []), (summed("x", "size"), 0, ["y"])]
)
def test_a_sum_is_kept_in_rows_where_its_shape_is_known(
    model: onnx.ModelProto, count: int, left: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(0).integers(-2, 3, (3, 40, 8, 8)).astype(np.float32)
    counted = []
    monkeypatch.setattr(target, "keep_sums_in_rows", lambda graph: counted.append(keep_sums_in_rows(graph)))
    graph = target.read_model(model)
    assert counted == [count]
    np.testing.assert_array_equal(answers(graph, x=x), Reference(model)({"x": x})["y"])
    named = [op.get_friendly_name() for op in graph.get_ops() if op.get_type_name() == "Add"]
    assert named == left, "reports name it; numbers of a channel are part of the layer"
