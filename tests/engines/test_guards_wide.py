"""Guards that fire where nothing is wrong: what the graph throws away, and sizes that are asked for in earnest."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from app.warmup import warm_up
from engines.errors import ValuesRefused
from engines.reference import Reference
from engines.runtime.openvino import load_session
from tests.engines.conftest import Built
from tests.support.onnx_models import FLOAT, build

INT64 = TensorProto.INT64
Build = Callable[[onnx.ModelProto | bytes], Built]
F32 = np.float32
make = helper.make_node


def test_whole_numbers_that_are_thrown_away_are_not_missed(built: Build) -> None:
    """Relative positions in buckets: the logarithm of no distance becomes a whole number, and is not chosen."""
    nodes = [
        make("Unsqueeze", ["p", "two"], ["rows"]), make("Unsqueeze", ["p", "one"], ["columns"]),
        make("Sub", ["rows", "columns"], ["apart"]), make("Abs", ["apart"], ["distance"]),
        make("Cast", ["distance"], ["d"], to=FLOAT), make("Log", ["d"], ["log"]),
        make("Cast", ["log"], ["large"], to=INT64, name="bucket"), make("Less", ["distance", "eight"], ["near"]),
        make("Where", ["near", "distance", "large"], ["b"]), make("Gather", ["table", "b"], ["y"]),
    ]  # fmt: skip
    constants = {"one": np.array([1]), "two": np.array([2]), "eight": np.array(8)}
    constants["table"] = np.random.default_rng(0).standard_normal(16).astype(F32)
    model = build(nodes, {"p": (INT64, ["N", "T"])}, {"y": (FLOAT, ["N", "T", "T"])}, constants)
    done = built(model)
    assert done.manifest.proof.batchable, done.manifest.proof.reason
    assert any("Cast 'bucket'" in note and "not refused" in note for note in done.manifest.notes)
    p = np.array([[0, 3, 90, 4000]])
    np.testing.assert_array_equal(done.answer({"p": p})[0]["y"], Reference(model)({"p": p})["y"])


def test_a_mask_times_the_least_whole_number(built: Build) -> None:
    """Zeros and ones are answered right although their product is beyond 32 bits; other numbers are refused."""
    nodes = [
        make("Sub", ["one", "m"], ["hidden"]), make("Mul", ["hidden", "least"], ["far"]),
        make("Cast", ["far"], ["bias"], to=FLOAT), make("Add", ["x", "bias"], ["masked"]),
        make("Softmax", ["masked"], ["y"], axis=1),
    ]  # fmt: skip
    constants = {"one": np.array(1), "least": np.array(-(2**63 - 1))}
    inputs = {"x": (FLOAT, ["N", 4]), "m": (INT64, ["N", 4])}
    model = build(nodes, inputs, {"y": (FLOAT, ["N", 4])}, constants)
    done = built(model)
    mask = next(spec for spec in done.manifest.inputs if spec.name == "m")
    assert mask.value_range == (0, 1)
    ask = {"x": np.arange(4, dtype=F32)[None], "m": np.array([[1, 0, 1, 0]])}
    np.testing.assert_allclose(done.answer(ask)[0]["y"], Reference(model)(ask)["y"], rtol=1e-5)


def test_values_that_zeros_are_not_do_not_keep_a_model_from_being_loaded(built: Build) -> None:
    """A warm-up asks with zeros, and a mean over nothing is no number."""
    nodes = [
        make("Cast", ["mask"], ["m"], to=FLOAT), make("ReduceSum", ["m", "axis"], ["count"], keepdims=0),
        make("Div", ["hundred", "count"], ["share"]), make("Cast", ["share"], ["y"], to=INT64, name="cut"),
    ]  # fmt: skip
    constants = {"axis": np.array([1]), "hundred": np.array(100, F32)}
    model = build(nodes, {"mask": (INT64, ["N", 8])}, {"y": (INT64, ["N"])}, constants)
    done = built(model)
    session = load_session(done.cache.entry(done.manifest.key), done.manifest)
    try:
        warm_up(session, done.manifest, (1, 2) if done.manifest.proof.batchable else (1,))
    finally:
        session.close()
    assert done.answer({"mask": np.ones((1, 8), np.int64)})[0]["y"] == [12]
    with pytest.raises(ValuesRefused, match="Cast 'cut'"):
        done.answer({"mask": np.zeros((1, 8), np.int64)})


@pytest.mark.parametrize("opset", [9, 10, 11, 13])
def test_a_broadcast_to_sizes_that_values_ask_for(opset: int, built: Build) -> None:
    model = build([make("Expand", ["x", "n"], ["y"])], {"x": (FLOAT, ["A", 1]), "n": (INT64, [3])},
                  {"y": (FLOAT, ["C", "D", "E"])}, opset=opset)  # fmt: skip
    done = built(model)
    ask = {"x": np.ones((3, 1), F32), "n": np.array([2, 1, 4])}
    np.testing.assert_array_equal(done.answer(ask)[0]["y"], Reference(model)(ask)["y"])
    with pytest.raises(ValuesRefused, match="Expand"):
        done.answer({**ask, "n": np.array([2**15, 3, 2**15])})


@pytest.mark.parametrize("axes", [False, True])
def test_paddings_count_along_their_own_axis(axes: bool, built: Build) -> None:
    names = ["x", "n", "", "axes"] if axes else ["x", "n"]
    constants = {"axes": np.array([2, 3])} if axes else {}
    inputs = {"x": (FLOAT, [1, 3, "H", "W"]), "n": (INT64, [4 if axes else 8])}
    model = build([make("Pad", names, ["y"])], inputs, {"y": (FLOAT, ["A", "B", "C", "D"])}, constants, opset=18)
    done = built(model)
    spatial = np.array([64, 0, 500, 300])
    pads = spatial if axes else np.array([0, 0, 64, 0, 0, 0, 500, 300])
    ask = {"x": np.ones((1, 3, 200, 100), F32), "n": pads}
    np.testing.assert_array_equal(done.answer(ask)[0]["y"], Reference(model)(ask)["y"])
    with pytest.raises(ValuesRefused, match="Pad"):
        done.answer({**ask, "n": pads * 100})
