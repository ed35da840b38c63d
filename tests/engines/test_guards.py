"""What the engine would answer wrongly without a word is counted beside it, and the run is refused by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from engines.errors import ValuesRefused
from engines.passes.guards import with_guards
from engines.reference import Arrays, Reference
from tests.engines.conftest import Built
from tests.support.onnx_models import FLOAT, build, linear

INT64 = TensorProto.INT64
Build = Callable[[onnx.ModelProto | bytes], Built]
TABLE = np.arange(15, dtype=np.float32).reshape(5, 3)


def node(op: str, inputs: list[str], outputs: list[str], **attributes: object) -> NodeProto:
    return helper.make_node(op, inputs, outputs, name=f"the_{op.lower()}", **attributes)


def looked_up(op: str) -> tuple[onnx.ModelProto, Callable[[int], Arrays]]:
    """A model that adds 1 to its input and uses the sum as an index; the function makes a request of one index."""
    one = {"table": TABLE, "one": np.array(1, np.int64)}
    add = helper.make_node("Add", ["i", "one"], ["j"])
    if op == "Gather":
        shapes: tuple[list[int | str], list[int | str]] = (["N"], ["N", 3])
        return build(
            [add, node(op, ["table", "j"], ["y"])], {"i": (INT64, shapes[0])}, {"y": (FLOAT, shapes[1])}, one
        ), (lambda i: {"i": np.array([i], np.int64)})
    if op == "GatherND":
        return build([add, node(op, ["table", "j"], ["y"])], {"i": (INT64, ["N", 1])}, {"y": (FLOAT, ["N", 3])}, one), (
            lambda i: {"i": np.array([[i]], np.int64)}
        )
    x = np.arange(5, dtype=np.float32)[None]
    index = {"i": (INT64, ["N", 1]), "x": (FLOAT, ["N", 5])}
    if op == "GatherElements":
        nodes = [add, node(op, ["x", "j"], ["y"], axis=1)]
        return build(nodes, index, {"y": (FLOAT, ["N", 1])}, one), lambda i: {"i": np.array([[i]], np.int64), "x": x}
    nodes = [add, helper.make_node("Cast", ["i"], ["u"], to=FLOAT), node(op, ["x", "j", "u"], ["y"], axis=1)]
    return build(nodes, index, {"y": (FLOAT, ["N", 5])}, one), lambda i: {"i": np.array([[i]], np.int64), "x": x}


@pytest.mark.parametrize("op", ["Gather", "GatherND", "GatherElements", "ScatterElements"])
def test_a_computed_index_outside_its_table_is_refused(op: str, built: Build) -> None:
    model, ask = looked_up(op)
    done = built(model)
    assert (len(done.manifest.guards), done.manifest.fails_on_values) == (2, True)  # the sum is guarded too
    for inside in (-6, -1, 0, 3):
        want = Reference(model)(ask(inside))["y"]
        np.testing.assert_array_equal(done.answer(ask(inside))[0]["y"], want)
    for outside in (-7, 4, 100_000, -100_000, 2**30):
        with pytest.raises(ValuesRefused, match=f"{op} 'the_{op.lower()}' looks up an index outside its table"):
            done.answer(ask(outside))


def test_every_row_of_a_batch_is_looked_at(built: Build) -> None:
    model, _ = looked_up("Gather")
    done = built(model)
    assert done.manifest.proof.batchable
    good, bad = np.zeros(8, np.int64), np.eye(8, dtype=np.int64)[7] * 4
    with pytest.raises(ValuesRefused):
        done.answer({"i": good + bad})
    assert done.answer({"i": good})[0]["y"].shape == (8, 3)


def scatter_nd() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["p"], ["i"], to=INT64),
        helper.make_node("Shape", ["p"], ["pair"]),
        helper.make_node("Gather", ["pair", "first"], ["k"]),
        helper.make_node("ConstantOfShape", ["k"], ["u"], value=helper.make_tensor("one", FLOAT, [1], [1])),
        node("ScatterND", ["x", "i", "u"], ["y"]),
    ]  # all updates are alike: which of several to one place comes last is not defined
    inputs = {"x": (FLOAT, ["A", "B"]), "p": (FLOAT, ["K", 2])}
    return build(nodes, inputs, {"y": (FLOAT, ["A", "B"])}, {"first": np.zeros(1, np.int64)})


def test_both_axes_of_an_nd_index_are_checked_against_shapes_known_only_at_run_time(built: Build) -> None:
    model = scatter_nd()
    done = built(model)
    x = np.zeros((3, 7), np.float32)
    for point in ([2, 6], [-3, -7], [0, 0]):
        batch = {"x": x, "p": np.array([point], np.float32)}
        np.testing.assert_array_equal(done.answer(batch)[0]["y"], Reference(model)(batch)["y"])
    for point in ([3, 0], [0, 7], [-4, 0], [0, -8]):
        with pytest.raises(ValuesRefused, match="ScatterND"):
            done.answer({"x": x, "p": np.array([point], np.float32)})


def test_an_index_found_in_one_tensor_need_not_fit_another(built: Build) -> None:
    """ArgMax over 9 names elements of 9, not rows of 5 (the bias keeps random samples among those)."""
    constants = {"table": TABLE, "bias": np.array([1000] * 5 + [0] * 4, np.float32)}
    nodes = [
        node("Add", ["x", "bias"], ["biased"]),
        node("ArgMax", ["biased"], ["best"], axis=1, keepdims=0),
        node("Gather", ["table", "best"], ["y"]),
    ]
    done = built(build(nodes, {"x": (FLOAT, ["N", 9])}, {"y": (FLOAT, ["N", 3])}, constants))
    hot = 5000 * np.eye(9, dtype=np.float32)
    np.testing.assert_array_equal(done.answer({"x": hot[4:5]})[0]["y"], TABLE[4:5])
    with pytest.raises(ValuesRefused):
        done.answer({"x": hot[5:6]})


def test_a_constant_index_into_a_variable_dimension(built: Build) -> None:
    nodes = [node("Gather", ["x", "four"], ["y"], axis=1)]
    done = built(build(nodes, {"x": (FLOAT, ["N", "T"])}, {"y": (FLOAT, ["N"])}, {"four": np.array(4, np.int64)}))
    assert done.answer({"x": np.arange(5, dtype=np.float32)[None]})[0]["y"] == [4]
    with pytest.raises(ValuesRefused):
        done.answer({"x": np.arange(4, dtype=np.float32)[None]})


def test_a_float_that_does_not_fit_the_engines_integers(built: Build) -> None:
    model = build([node("Cast", ["x"], ["y"], to=INT64)], {"x": (FLOAT, ["N", 2])}, {"y": (INT64, ["N", 2])})
    done = built(model)
    (answer,) = done.answer({"x": np.array([[1.5, -(2.0**30)]], np.float32)})
    np.testing.assert_array_equal(answer["y"], [[1, -(2**30)]])
    for value in (2.0**31, -(2.0**40), np.nan, np.inf):
        with pytest.raises(ValuesRefused, match=r"Cast 'the_cast' makes an integer of (a number beyond 32|what is no)"):
            done.answer({"x": np.array([[0, value]], np.float32)})


def test_fp64_answers_beyond_fp32_are_refused_and_nan_is_not(built: Build) -> None:
    double = TensorProto.DOUBLE
    model = build([node("Mul", ["x", "x"], ["y"])], {"x": (double, ["N", 2])}, {"y": (double, ["N", 2])})
    done = built(model)
    assert done.answer({"x": np.array([[1e15, np.nan]])})[0]["y"][0, 0] == pytest.approx(1e30)
    for value in (1e30, np.inf):
        with pytest.raises(ValuesRefused, match="output 'y' is beyond FP32"):
            done.answer({"x": np.array([[value, 0]])})


def body(kind: str) -> GraphProto:
    """One step of a loop: looks the running index up and adds what it finds."""
    names = [("step", INT64, []), ("go", TensorProto.BOOL, [])] if kind == "Loop" else []
    inputs = [*names, ("total", FLOAT, []), *([("j", INT64, [])] if kind == "Scan" else [])]
    nodes = [helper.make_node("Identity", ["go"], ["go_on"])] if kind == "Loop" else []
    nodes += [
        helper.make_node("Add", ["step", "i"], ["j"]) if kind == "Loop" else helper.make_node("Identity", ["j"], ["k"]),
        node("Gather", ["row", "j" if kind == "Loop" else "k"], ["found"]),
        helper.make_node("Add", ["total", "found"], ["sum"]),
    ]
    outputs = [("go_on", TensorProto.BOOL, []), ("sum", FLOAT, [])] if kind == "Loop" else [("sum", FLOAT, [])]
    return helper.make_graph(
        nodes, "body", *([helper.make_tensor_value_info(*one) for one in side] for side in (inputs, outputs))
    )


def test_look_ups_in_the_body_of_a_loop(built: Build) -> None:
    constants = {"row": TABLE[0], "turns": np.array(2, np.int64), "yes": np.array(True), "zero": np.float32(0)}
    loop = helper.make_node("Loop", ["turns", "yes", "zero"], ["y"], body=body("Loop"), name="the_loop")
    model = build([loop], {"i": (INT64, [])}, {"y": (FLOAT, [])}, constants)
    done = built(model)
    assert done.answer({"i": np.array(1)})[0]["y"] == 3
    with pytest.raises(ValuesRefused, match="Loop 'the_loop' looks up an index outside its table"):
        done.answer({"i": np.array(2)})


def test_look_ups_in_the_body_of_a_scan(built: Build) -> None:
    constants = {"row": TABLE[0], "zero": np.float32(0)}
    scan = helper.make_node("Scan", ["zero", "i"], ["y"], body=body("Scan"), num_scan_inputs=1, name="the_scan")
    model = build([scan], {"i": (INT64, ["N"])}, {"y": (FLOAT, [])}, constants)
    done = built(model)
    assert done.answer({"i": np.array([0, 1, 2, 2])})[0]["y"] == 5
    with pytest.raises(ValuesRefused, match="Scan"):
        done.answer({"i": np.array([0, 3, 2, 2])})


def test_look_ups_in_one_branch_of_an_if(built: Build) -> None:
    def branch(nodes: list[NodeProto], out: str) -> GraphProto:
        return helper.make_graph(nodes, out, [], [helper.make_tensor_value_info(out, FLOAT, ["N", 3])])

    then = branch([helper.make_node("Add", ["i", "one"], ["j"]), node("Gather", ["table", "j"], ["a"])], "a")
    other = branch([helper.make_node("Gather", ["table", "zeros"], ["b"])], "b")
    model = build(
        [helper.make_node("If", ["flag"], ["y"], then_branch=then, else_branch=other, name="the_if")],
        {"flag": (TensorProto.BOOL, []), "i": (INT64, ["N"])},
        {"y": (FLOAT, ["N", 3])},
        {"table": TABLE, "one": np.array(1, np.int64), "zeros": np.zeros(1, np.int64)},
    )
    done = built(model)
    index = np.array([4])
    np.testing.assert_array_equal(done.answer({"flag": np.array(False), "i": index})[0]["y"], TABLE[:1])
    with pytest.raises(ValuesRefused, match="If"):
        done.answer({"flag": np.array(True), "i": index})


def test_look_ups_in_a_function_of_the_model_itself(built: Build) -> None:
    nodes = [helper.make_node("Add", ["i", "i"], ["j"]), helper.make_node("Gather", ["t", "j"], ["f"])]
    function = helper.make_function("own", "twice", ["t", "i"], ["f"], nodes, [helper.make_opsetid("", 17)])
    model = build([helper.make_node("Identity", ["i"], ["y"])], {"i": (INT64, ["N"])}, {"y": (INT64, ["N"])})
    del model.graph.node[:], model.graph.output[:]
    model.graph.initializer.append(numpy_helper.from_array(TABLE, "table"))
    model.graph.node.append(helper.make_node("twice", ["table", "i"], ["y"], domain="own", name="call"))
    model.graph.output.append(helper.make_tensor_value_info("y", FLOAT, ["N", 3]))
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    done = built(model)
    np.testing.assert_array_equal(done.answer({"i": np.array([2])})[0]["y"], TABLE[4:])
    with pytest.raises(ValuesRefused):
        done.answer({"i": np.array([3])})


def test_nothing_to_guard_leaves_a_model_as_it_is() -> None:
    model = linear()
    assert with_guards(model) == (model, ())
    embedding = build(
        [node("Gather", ["table", "i"], ["y"])], {"i": (INT64, ["N"])}, {"y": (FLOAT, ["N", 3])}, {"table": TABLE}
    )
    assert with_guards(embedding) == (embedding, ()), "its index is checked on arrival"


def test_constants_that_always_fit_need_no_guard() -> None:
    constants = {"first": np.array(0, np.int64), "last": np.array([-1], np.int64), "two": np.array(2, np.int64)}
    nodes = [
        helper.make_node("Gather", ["x", "first"], ["a"], axis=1),
        helper.make_node("Gather", ["x", "last"], ["b"], axis=2),
        helper.make_node("Gather", ["x", "two"], ["c"], axis=2),
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "two"], ["d"]),
    ]
    outputs = {"a": (FLOAT, ["N", 3]), "b": (FLOAT, ["N", "T", 1]), "c": (FLOAT, ["N", "T"]), "d": (INT64, [])}
    assert with_guards(build(nodes, {"x": (FLOAT, ["N", "T", 3])}, outputs, constants))[1] == ()


I64 = np.int64
SIZED = {
    "Expand": (["x", "n"], {"x": (FLOAT, [1, 1]), "n": (INT64, [3])}, {"n": [2, 1, 4]}, {"n": [2**16, 1, 2**14]}),
    "ConstantOfShape": (["n"], {"n": (INT64, [2])}, {"n": [2, 3]}, {"n": [2**20, 2**20]}),
    "Tile": (["x", "n"], {"x": (FLOAT, [3, 1]), "n": (INT64, [2])}, {"n": [2, 4]}, {"n": [2**20, 2**10]}),
    "Range": (["zero", "n", "one"], {"n": (INT64, [])}, {"n": 5}, {"n": 2**30}),
    "OneHot": (["i", "n", "pair"], {"i": (INT64, ["N"]), "n": (INT64, [])}, {"n": 3}, {"n": 2**29}),
    "Pad": (["x", "n"], {"x": (FLOAT, [3, 1]), "n": (INT64, [4])}, {"n": [0, 1, 2, 0]}, {"n": [0, 1, 2**30, 0]}),
    "Resize": (["image", "", "scales"], {"image": (FLOAT, [1, 1, 2, 2]), "n": (FLOAT, [2])}, {"n": [1, 2]},
               {"n": [2**15, 2**15]}),
}  # fmt: skip


@pytest.mark.parametrize("op", SIZED)
def test_a_size_that_values_ask_for_is_bounded(op: str, built: Build) -> None:
    """Some bytes must not make the engine allocate gigabytes; the replaced size runs, and its answer is thrown away."""
    inputs, types, small, large = SIZED[op]
    constants = {"zero": np.array(0, I64), "one": np.array(1, I64), "pair": np.array([0, 1], np.float32)}
    constants["ones"] = np.ones(2, np.float32)
    positive = [
        helper.make_node("Abs", ["n"], ["size"]),
        helper.make_node("Add", ["size", "ones"], ["more"]),
        helper.make_node("Concat", ["ones", "more"], ["scales"], axis=0),
    ]
    out = INT64 if op == "Range" else FLOAT
    ranks = {"Expand": 3, "Range": 1, "Resize": 4}
    nodes = [*(positive if op == "Resize" else []), node(op, inputs, ["y"])]
    model = build(nodes, types, {"y": (out, [f"d{i}" for i in range(ranks.get(op, 2))])}, constants)
    done = built(model)
    others: Arrays = {
        name: np.ones([1 if isinstance(d, str) else d for d in shape], I64 if kind == INT64 else np.float32)
        for name, (kind, shape) in types.items()
    }
    kind = others["n"].dtype
    ask = {**others, "n": np.array(small["n"], kind)}
    np.testing.assert_array_equal(done.answer(ask)[0]["y"], Reference(model)(ask)["y"])
    with pytest.raises(ValuesRefused, match=f"{op} 'the_{op.lower()}' asks for too large a size"):
        done.answer({**others, "n": np.array(large["n"], kind)})


def test_a_broadcast_is_measured_as_a_broadcast(built: Build) -> None:
    """Two sizes of 2**15 that share a dimension are 2**15 elements, not 2**30; apart they are 2**30."""
    model = build([node("Expand", ["x", "n"], ["y"])], {"x": (FLOAT, ["A", "B"]), "n": (INT64, [2])},
                  {"y": (FLOAT, ["C", "D"])})  # fmt: skip
    done = built(model)
    row, column = np.ones((1, 2**15), np.float32), np.ones((2**15, 1), np.float32)
    sizes = np.array([1, 2**15])
    assert done.answer({"x": row, "n": sizes})[0]["y"].shape == (1, 2**15)
    with pytest.raises(ValuesRefused):
        done.answer({"x": column, "n": sizes})


def test_the_turns_of_a_loop_are_bounded(built: Build) -> None:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["total", "total"], ["sum"])],
        "body",
        [helper.make_tensor_value_info(*one) for one in (("step", INT64, []), ("go", 9, []), ("total", FLOAT, [1]))],
        [helper.make_tensor_value_info(*one) for one in (("go_on", 9, []), ("sum", FLOAT, [1]))],
    )
    loop = helper.make_node("Loop", ["n", "yes", "x"], ["y"], body=inner, name="the_loop")
    model = build([loop], {"n": (INT64, []), "x": (FLOAT, [1])}, {"y": (FLOAT, [1])}, {"yes": np.array(True)})
    done = built(model)
    one = np.ones(1, np.float32)
    assert done.answer({"n": np.array(5), "x": one})[0]["y"] == 32
    with pytest.raises(ValuesRefused, match="Loop 'the_loop' asks for too large a size"):
        done.answer({"n": np.array(2**62), "x": one})


@pytest.mark.parametrize("by_shape", [False, True])
def test_a_range_that_leads_away_from_its_limit_is_empty(by_shape: bool, built: Build) -> None:
    nodes = [node("Range", ["zero", "limit", "one"], ["y"])]
    if by_shape:
        nodes = [
            helper.make_node("Size", ["n"], ["size"]), helper.make_node("Sub", ["size", "five"], ["limit"]), *nodes,
        ]  # fmt: skip
    name, shape = ("n", ["N"]) if by_shape else ("limit", [])
    constants = {"zero": np.array(0), "one": np.array(1), "five": np.array(5)}
    model = build(nodes, {name: (INT64, shape)}, {"y": (INT64, ["M"])}, constants)
    done = built(model)
    asks = [np.zeros(8, I64), np.zeros(2, I64)] if by_shape else [np.array(3), np.array(-3)]
    for ask, want in zip(asks, ([0, 1, 2], []), strict=True):
        assert done.answer({name: ask})[0]["y"].tolist() == want


@pytest.mark.parametrize(("op", "good", "bad"), [
    ("ReduceSum", [[2**22] * 3], [[2**22] * 4]), ("Mul", [[2**15, -(2**14)]], [[2**16, 1]]),
    ("CumSum", [[2**30, -(2**30)]], [[2**30, 2**30]]), ("Add", [[2**30 - 1, -(2**30)]], [[2**30, 0]]),
    ("Sub", [[2**30 - 1, -(2**30)]], [[2**30, 0]]), ("Equal", [[2**24 - 1, 5]], [[2**24 + 1, 5]]),
    ("Mod", [[2**24 - 1, -5]], [[5, 2**25 + 1]]), ("ReduceMax", [[2**24 - 1, -5]], [[2**24 + 1, -5]]),
])  # fmt: skip
def test_integers_that_grow_beyond_what_the_engine_holds(
    op: str, good: list[list[int]], bad: list[list[int]], built: Build
) -> None:
    """The probe at build time sees some lengths and magnitudes; a request may bring others."""
    inputs = {"ReduceSum": ["x", "one"], "CumSum": ["x", "axis"], "Sub": ["x", "negative"], "Equal": ["x", "five"],
              "Mod": ["x", "five"], "ReduceMax": ["x"]}.get(op, ["x", "x"])  # fmt: skip
    constants = {"one": np.array([1]), "axis": np.array(1), "five": np.array(5)}
    nodes = [helper.make_node("Neg", ["x"], ["negative"]), node(op, inputs, ["y"])]
    out = ["N", 1] if op == "ReduceSum" else ["N", "T"] if op != "ReduceMax" else [1, 1]
    kind = TensorProto.BOOL if op == "Equal" else INT64
    model = build(nodes[op != "Sub" :], {"x": (INT64, ["N", "T"])}, {"y": (kind, out)}, constants)
    done = built(model)
    x = np.array(good)
    np.testing.assert_array_equal(done.answer({"x": x})[0]["y"], Reference(model)({"x": x})["y"])
    with pytest.raises(ValuesRefused, match=f"{op} 'the_{op.lower()}' (meets or )?gives (an )?integers? beyond"):
        done.answer({"x": np.array(bad)})


@pytest.mark.parametrize(("op", "good", "bad"), [
    ("Tile", [2, 0], [[-2, -3], [-1, 3], [-2000, -3000]]),
    ("Pad", [-1, 0, 0, -3], [[-10, 0, 10, 0], [0, 0, -3, 0], [-1, 0, -2, 0], [0, -7, 0, 9]]),
])  # fmt: skip
def test_sizes_below_nothing_touch_no_memory(op: str, good: list[int], bad: list[list[int]], built: Build) -> None:
    """The engine takes them, and its heap is damaged some requests later; so all are sent to one session, twice."""
    nodes = [node(op, ["x", "n"], ["y"])]
    done = built(build(nodes, {"x": (FLOAT, [2, 6]), "n": (INT64, [len(good)])}, {"y": (FLOAT, ["A", "B"])}))
    x = np.ones((2, 6), np.float32)
    for sizes in [*bad, *bad]:
        with pytest.raises(
            ValuesRefused, match=f"{op} 'the_{op.lower()}' asks for too large a size, or less than nothing"
        ):
            done.answer({"x": x, "n": np.array(good)}, {"x": x, "n": np.array(sizes)})
    want = Reference(build(nodes, {"x": (FLOAT, [2, 6]), "n": (INT64, [len(good)])}, {"y": (FLOAT, ["A", "B"])}))
    ask = {"x": x, "n": np.array(good)}
    np.testing.assert_array_equal(done.answer(ask)[0]["y"], want(ask)["y"])


@pytest.mark.parametrize("op", ["Gather", "GatherElements", "GatherND"])
def test_for_a_gpu_no_look_up_leaves_its_table(op: str) -> None:
    """ONNX Runtime, which checks, answers; the count says that the answer is nobody's. Right indices are untouched."""
    model, request = looked_up(op)
    guarded, (said, *_) = with_guards(model, on_gpu=True)
    for index, is_bad in ((0, False), (3, False), (4, True), (-7, True), (10**6, True)):
        answer = Reference(guarded)(request(index))
        assert bool(answer["bitserve.guards"].any()) == is_bad, said
        if not is_bad:
            np.testing.assert_array_equal(answer["y"], Reference(model)(request(index))["y"])
