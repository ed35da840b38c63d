"""A convolution that adds what is added to its sums answers as an Add behind it does, bit for bit."""

from __future__ import annotations

import numpy as np
import onnx
import openvino as ov
import pytest
from onnx import helper

from engines.plugins.extension import extension_path
from engines.plugins.native import Native
from engines.reference import Reference
from engines.targets import openvino as target
from tests.plugins.binary_networks import Network
from tests.plugins.test_kernels import KERNELS, usable
from tests.support.onnx_models import FLOAT, build

pytestmark = pytest.mark.skipif(extension_path() is None, reason="needs a C++ compiler when bitserve is installed")
Arrays = dict[str, np.ndarray]
ADDING, ALONE = "BundledPackingAddingBinaryConv2d", "BundledPackingBinaryConv2d"


def kinds(graph: ov.Model) -> list[str]:
    return [op.get_type_name() for op in graph.get_ordered_ops() if "Binary" in op.get_type_name()]


def answer(graph: ov.Model, inputs: Arrays) -> np.ndarray:
    return target.runner(target.compile_model(graph, 1, 2), ["y"])(inputs)["y"]


def reals(*shape: int, seed: int = 0) -> np.ndarray:
    """Such that every operation rounds."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def of_two_inputs(
    channels: int = 40,
    filters: int = 40,
    *,
    prelu: bool = False,
    first: bool = True,
    rows: tuple[str, str] = ("N", "N"),
    **keys: object,
) -> onnx.ModelProto:
    """A layer of x, perhaps a PReLU, and the sum with r, which comes first or last."""
    made = Network()
    y = made.conv(made.sign("x"), channels, filters, pads=[1, 1, 1, 1], **keys)
    made.stored[f"{y}.w"] = (np.sign(made.stored[f"{y}.w"]) * np.float32(0.7)).astype(np.float32)
    made.stored[f"{y}.b"] = reals(filters, seed=1)
    if prelu:
        made.stored["slopes"] = reals(filters, 1, 1, seed=2)
        made.nodes.append(helper.make_node("PRelu", [y, "slopes"], ["bent"], name="bent"))
    values = ["bent" if prelu else y, "r"]
    made.nodes.append(helper.make_node("Add", values if first else values[::-1], ["y"], name="sum"))
    given = {"x": (FLOAT, [rows[0], channels, 8, 7]), "r": (FLOAT, [rows[1], filters, 8, 7])}
    return build(made.nodes, given, {"y": (FLOAT, [None, None, None, None])}, made.stored, 21)


def is_the_same_apart(model: onnx.ModelProto, inputs: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the engine of two operators, to the last bit; as ONNX Runtime, whose convolution rounds in other places."""
    adding = target.read_model(model)
    monkeypatch.setattr(target, "add_in_layers", lambda graph: 0)
    apart = target.read_model(model)
    assert (kinds(adding), kinds(apart)) == ([ADDING], [ALONE])
    found = answer(adding, inputs)
    np.testing.assert_array_equal(found, answer(apart, inputs))
    np.testing.assert_allclose(found, Reference(model)(inputs)["y"], rtol=1e-5, atol=1e-3)
    assert not np.array_equal(found, answer(adding, inputs | {"r": np.zeros_like(inputs["r"])}))


@pytest.mark.parametrize("prelu", [False, True])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"first": False},
        {"filters": 1},
        {"channels": 33, "filters": 71},
        {"channels": 64, "filters": 20, "group": 2},
    ],
)
def test_sums_of_a_layer_and_an_input(keys: dict[str, int], prelu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels and places off the eight that are turned at a time, an activation before the sum."""
    model = of_two_inputs(**keys, prelu=prelu)
    x, r = reals(3, keys.get("channels", 40), 8, 7), reals(3, keys.get("filters", 40), 8, 7, seed=5)
    is_the_same_apart(model, {"x": x, "r": r}, monkeypatch)


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_adds(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    native = Native()
    usable(native, kernel)
    native.pin(kernel)
    try:
        inputs = {"x": reals(2, 40, 8, 7), "r": reals(2, 40, 8, 7, seed=5)}
        is_the_same_apart(of_two_inputs(), inputs, monkeypatch)
    finally:
        native.pin("")


@pytest.mark.parametrize(("own", "others"), [(1, 3), (3, 1), (1, 1)])
def test_one_row_is_added_to_all(own: int, others: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = {"x": reals(own, 40, 8, 7), "r": reals(others, 40, 8, 7, seed=5)}
    is_the_same_apart(of_two_inputs(rows=("N", "M")), inputs, monkeypatch)


def test_rows_that_do_not_fit_are_refused_and_the_next_are_answered() -> None:
    run = target.runner(target.compile_model(target.read_model(of_two_inputs(rows=("N", "M"))), 1, 1), ["y"])
    with pytest.raises(target.EngineFailed):
        run({"x": reals(2, 40, 8, 7), "r": reals(3, 40, 8, 7)})
    assert run({"x": reals(2, 40, 8, 7), "r": reals(2, 40, 8, 7)})["y"].shape == (2, 40, 8, 7)


def chain(size: int | str = 9) -> onnx.ModelProto:
    """Three layers in a row, each with the sum of what it reads: whole numbers throughout."""
    made, value = Network(), "x"
    for _ in range(3):
        layer = made.conv(made.sign(value), 40, 40, pads=[1, 1, 1, 1])
        total = made.name("sum")
        made.nodes.append(helper.make_node("Add", [value, layer], [total], name=total))
        value = total
    return made.model(value, 40, size)


def test_a_chain_has_no_other_operator_and_an_imported_engine_answers_the_same() -> None:
    model = chain()
    graph = target.read_model(model)
    assert kinds(graph) == [ADDING] * 3
    assert not [op for op in graph.get_ops() if op.get_type_name() in ("Add", "Reshape")]
    blob = target.export(target.compile_model(graph, 1, 1))
    for rows in (1, 4):
        x = np.random.default_rng(rows).integers(-2, 3, (rows, 40, 9, 9)).astype(np.float32)
        found = target.runner(target.reimported(blob, 1, 2), ["y"], blob)({"x": x})["y"]
        np.testing.assert_array_equal(found, Reference(model)({"x": x})["y"])


def two_planes() -> onnx.ModelProto:
    """ONNX's Sign has three values: the sum of two layers."""
    made = Network()
    return made.model(made.conv(made.sign("x", "sign(x)"), 40, 24, pads=[1, 1, 1, 1]), 40, 9)


def read_twice() -> onnx.ModelProto:
    """The layer's own sums are read by a Relu, too."""
    made = Network()
    layer = made.conv(made.sign("x"), 40, 40, pads=[1, 1, 1, 1])
    made.nodes += [
        helper.make_node("Add", [layer, "x"], ["sum"], name="sum"),
        helper.make_node("Relu", [layer], ["bent"], name="bent"),
        helper.make_node("Concat", ["sum", "bent"], ["both"], name="both", axis=1),
    ]
    return made.model("both", 40, 9)


@pytest.mark.parametrize(
    ("model", "wanted"),
    [(two_planes(), [ADDING, ALONE]), (read_twice(), [ALONE]), (chain("size"), [ALONE] * 3)],
)  # fmt: skip
def test_what_is_added_where(model: onnx.ModelProto, wanted: list[str]) -> None:
    """Of two layers one adds the other; floats that others read, or of sizes that are not known, are added apart."""
    graph = target.read_model(model)
    assert sorted(kinds(graph)) == wanted
    x = np.random.default_rng(0).integers(-2, 3, (3, 40, 9, 9)).astype(np.float32)
    np.testing.assert_array_equal(answer(graph, {"x": x}), Reference(model)({"x": x})["y"])
