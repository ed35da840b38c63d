"""The first wrong layer is found: behind branches, where a ReLU hides the error further on, and in a real engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from engines import layers
from engines.graphs import copy_of
from engines.layers import Run, first_differing_layer
from engines.passes.calm_softmax import with_outputs
from engines.reference import Arrays, Reference
from engines.targets import openvino as target
from tests.passes.old_operators import body_of
from tests.support.onnx_models import FLOAT, build

node = helper.make_node
ROUNDING = 1e-4


def chain(length: int, op_type: str = "Tanh") -> onnx.ModelProto:
    """MatMul, op, MatMul, op ... over x [N, 6]; nodes m0, a0, m1, a1 ..."""
    rng = np.random.default_rng(0)
    nodes, stored, last = [], {}, "x"
    for i in range(length):
        stored[f"W{i}"] = rng.standard_normal((6, 6), dtype=np.float32)
        nodes.append(node("MatMul", [last, f"W{i}"], [f"h{i}"], name=f"m{i}"))
        last = "y" if i == length - 1 else f"r{i}"
        nodes.append(node(op_type, [f"h{i}"], [last], name=f"a{i}"))
    return build(nodes, {"x": (FLOAT, ["N", 6])}, {"y": (FLOAT, ["N", 6])}, stored)


def branches() -> onnx.ModelProto:
    """Two towers in turn in the node order, met by a Sum; each has a ReLU; y2 is an output of the left one alone."""
    rng = np.random.default_rng(1)
    stored = {f"{side}{i}": rng.standard_normal((6, 6), dtype=np.float32) for side in "lr" for i in range(12)}
    nodes, last = [], {"l": "x", "r": "x"}
    for i in range(12):
        for side in "lr":
            nodes.append(node("MatMul", [last[side], f"{side}{i}"], [f"{side}h{i}"], name=f"{side}m{i}"))
            nodes.append(node("Tanh", [f"{side}h{i}"], [f"{side}t{i}"], name=f"{side}t{i}"))
            last[side] = f"{side}t{i}"
    nodes += [node("Add", [last["l"], last["r"]], ["y"], name="sum"), node("Neg", [last["l"]], ["y2"], name="left")]
    return build(nodes, {"x": (FLOAT, ["N", 6])}, {"y": (FLOAT, ["N", 6]), "y2": (FLOAT, ["N", 6])}, stored)


def with_moved(model: onnx.ModelProto, name: str, by: float = 0.5) -> onnx.ModelProto:
    """A copy with one stored tensor moved: what a wrong engine computes."""
    copy = copy_of(model)
    (tensor,) = [tensor for tensor in copy.graph.initializer if tensor.name == name]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(by), name))
    return copy


class Engine:
    """Runs `wrong` for the model; counts what was compiled and looked at."""

    def __init__(self, wrong: onnx.ModelProto, run_of: Callable[[onnx.ModelProto], Run] = Reference) -> None:
        self._wrong, self._run_of = wrong, run_of
        self.compiled: list[int] = []

    def __call__(self, opened: onnx.ModelProto, names: Sequence[str]) -> Run:
        self.compiled.append(len(names))
        return self._run_of(with_outputs(self._wrong, list(names)))


def sample(width: int = 6) -> Arrays:
    return {"x": np.random.default_rng(7).standard_normal((1, width), dtype=np.float32)}


@pytest.mark.parametrize("at", [0, 1, 13, 28, 29])
def test_in_a_chain(at: int) -> None:
    model = chain(30)
    engine = Engine(with_moved(model, f"W{at}"))
    found = first_differing_layer(model, sample(), Reference, engine, ROUNDING)
    assert found is not None
    assert (found.node, found.op_type, found.output, found.alone) == (f"m{at}", "MatMul", f"h{at}", True)
    assert found.difference > found.bound
    assert len(engine.compiled) <= 5
    assert max(engine.compiled) <= 24


@pytest.mark.parametrize("name", ["l0", "r0", "l5", "r7", "l11", "r11"])
def test_behind_branches(name: str) -> None:
    model = branches()
    found = first_differing_layer(model, sample(), Reference, Engine(with_moved(model, name)), ROUNDING)
    assert found is not None
    assert found.node == f"{name[0]}m{name[1:]}"


def test_the_first_of_two_on_one_path() -> None:
    model = branches()
    wrong = with_moved(with_moved(model, "l3"), "l9")
    found = first_differing_layer(model, sample(), Reference, Engine(wrong), ROUNDING)
    assert found is not None
    assert found.node == "lm3"


def hidden_on_one_side() -> onnx.ModelProto:
    """first -> Neg -> ReLU (hides what is positive there) -> ... -> y; and first -> ... -> z, where it is seen."""
    nodes = [
        node("Add", ["x", "bias"], ["h"], name="first"),
        node("Neg", ["h"], ["n"], name="neg"),
        node("Relu", ["n"], ["r"], name="relu"),
        *(node("Tanh", ["r" if i == 0 else f"t{i - 1}"], [f"t{i}"], name=f"t{i}") for i in range(20)),
        node("Neg", ["t19"], ["y"], name="end"),
        node("Tanh", ["h"], ["u"], name="seen"),
        node("Neg", ["u"], ["z"], name="end of the seen"),
    ]
    outputs = {"y": (FLOAT, ["N", 6]), "z": (FLOAT, ["N", 6])}
    return build(nodes, {"x": (FLOAT, ["N", 6])}, outputs, {"bias": np.full(6, 20, np.float32)})


def test_an_error_that_vanishes_on_one_side_is_found_by_the_other() -> None:
    model = hidden_on_one_side()
    x = {"x": sample()["x"] - 19}  # tanh is not saturated there
    found = first_differing_layer(model, x, Reference, Engine(with_moved(model, "bias", 0.3)), ROUNDING)
    assert found is not None
    assert found.node == "first"


def test_an_error_that_no_output_shows_is_found_too() -> None:
    model = hidden_on_one_side()
    del model.graph.node[-2:], model.graph.output[1:]
    want, got = (Reference(one)(sample())["y"] for one in (model, with_moved(model, "bias", 3)))
    np.testing.assert_array_equal(want, got)
    found = first_differing_layer(model, sample(), Reference, Engine(with_moved(model, "bias", 3)), ROUNDING)
    assert found is not None
    assert (found.node, found.output) == ("first", "h")


def test_a_right_engine_has_none() -> None:
    model = branches()
    assert first_differing_layer(model, sample(), Reference, Engine(model), ROUNDING) is None


def test_a_swapped_operator() -> None:
    model = chain(12)
    wrong = copy_of(model)
    wrong.graph.node[9].op_type = "Sigmoid"
    found = first_differing_layer(model, sample(), Reference, Engine(wrong), ROUNDING)
    assert found is not None
    assert (found.node, found.op_type) == ("a4", "Tanh")


def test_a_body_counts_as_its_node_and_sees_the_values_around_it() -> None:
    model = body_of([node("Mul", ["x", "k"], ["b"])], 17, {"k": np.float32(2)})
    model.graph.node[2].name = "branch"
    x = {"x": np.ones((2, 1, 4, 4), np.float32)}
    found = first_differing_layer(model, x, Reference, Engine(with_moved(model, "k")), ROUNDING)
    assert found is not None
    assert found.node == "branch"
    wrong = copy_of(model)  # what the body reads is made outside of it
    for one in (model, wrong):
        one.graph.node.insert(0, node("Identity", ["k"], ["k2"], name="outside"))
        for attribute in one.graph.node[3].attribute:
            attribute.g.node[0].input[1] = "k2"
    wrong.graph.node[0].op_type = "Neg"
    found = first_differing_layer(model, x, Reference, Engine(wrong), ROUNDING)
    assert found is not None
    assert found.node == "outside"


def test_a_layer_that_is_wrong_only_in_company_is_said_to_be() -> None:
    """As a fused kernel: wrong as long as nobody looks at what it reads."""
    model = chain(6)
    wrong = with_moved(model, "W3")

    def fused(opened: onnx.ModelProto, names: Sequence[str]) -> Run:
        is_open = "r2" in names and "h3" in names
        return Reference(with_outputs(model if is_open else wrong, list(names)))

    found = first_differing_layer(model, sample(), Reference, fused, ROUNDING)
    assert found is not None
    assert (found.node, found.alone) == ("m3", False)


def test_values_that_an_engine_cannot_give_are_passed_over() -> None:
    model = chain(10)
    engine = Engine(with_moved(model, "W6"))

    def choosy(opened: onnx.ModelProto, names: Sequence[str]) -> Run:
        if "r2" in names:
            raise RuntimeError("no such output")
        return engine(opened, names)

    found = first_differing_layer(model, sample(), Reference, choosy, ROUNDING)
    assert found is not None
    assert found.node == "m6"


def test_many_values_across_one_cut_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_VALUES", 2)
    model = branches()
    found = first_differing_layer(model, sample(), Reference, Engine(with_moved(model, "r4")), ROUNDING)
    assert found is not None
    assert found.node == "rm4"


@pytest.mark.parametrize("at", [2, 9])
def test_in_a_real_engine(at: int) -> None:
    """OpenVINO compiles a model of which one weight is another."""
    model = chain(12, "Relu")

    def compiled(opened: onnx.ModelProto) -> Run:
        graph = target.read_model(opened)
        return target.runner(target.compile_model(graph, 1, 2), [value.name for value in opened.graph.output])

    engine = Engine(with_moved(model, f"W{at}"), compiled)
    found = first_differing_layer(model, sample(), Reference, engine, ROUNDING)
    assert found is not None
    assert (found.node, found.output) == (f"m{at}", f"h{at}")
    assert first_differing_layer(model, sample(), Reference, Engine(model, compiled), ROUNDING) is None
