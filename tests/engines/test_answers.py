"""The engine answers as ONNX Runtime does, in every datatype, or the build is refused with what was expected."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.builds import state
from engines.errors import ModelRefused
from engines.reference import Reference
from engines.repository import PlanCache
from engines.steps import CANONICAL_PASSES
from engines.tensor import datatype
from tests.engines import zoo
from tests.engines.conftest import Built
from tests.support.onnx_models import FLOAT, build, linear
from tests.support.plans import compile_into

Build = Callable[[onnx.ModelProto | bytes], Built]
FLOATS = {"FP16": TensorProto.FLOAT16, "FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE}
WHOLE = {name: getattr(TensorProto, name) for name in ("INT16", "INT32", "INT64", "UINT16", "UINT32", "UINT64")}


def pair(name: str, low: int, high: int, rows: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    kind = datatype(name).numpy
    if kind.kind == "f":
        return {key: rng.standard_normal((rows, 4)).astype(kind) for key in "ab"}
    return {key: rng.integers(low, high, (rows, 4)).astype(kind) for key in "ab"}


@pytest.mark.parametrize("name", [*FLOATS, *WHOLE])
@pytest.mark.parametrize("operator", ["Add", "Mul", "Max"])
def test_numbers_of_every_type(name: str, operator: str, built: Build) -> None:
    if operator == "Max" and name.endswith("INT16"):
        operator = "Sub"  # ONNX Runtime has no Max of 16-bit numbers
    model = zoo.elementwise({**FLOATS, **WHOLE}[name], operator)
    done = built(model)
    assert done.manifest.inputs[0].datatype == done.manifest.outputs[0].datatype == name
    batch = pair(name, 0, 100)
    (answer,) = done.answer(batch)
    want = Reference(model)(batch)["y"]
    assert answer["y"].dtype == want.dtype
    np.testing.assert_allclose(answer["y"], want, rtol=1e-3 if name == "FP16" else 1e-6, atol=1e-6)


@pytest.mark.parametrize(("operator", "out"), [("And", "BOOL"), ("Xor", "BOOL")])
def test_booleans(operator: str, out: str, built: Build) -> None:
    model = zoo.elementwise(TensorProto.BOOL, operator)
    batch = {key: np.random.default_rng(i).integers(0, 2, (3, 4)).astype(bool) for i, key in enumerate("ab")}
    done = built(model)
    assert done.manifest.outputs[0].datatype == out
    np.testing.assert_array_equal(done.answer(batch)[0]["y"], Reference(model)(batch)["y"])


def test_comparison_and_cast(built: Build) -> None:
    """FP32 in; BOOL, INT8 and UINT8 out."""
    model = build(
        [
            helper.make_node("Greater", ["x", "zero"], ["positive"]),
            helper.make_node("Cast", ["positive"], ["small"], to=TensorProto.INT8),
            helper.make_node("Cast", ["positive"], ["byte"], to=TensorProto.UINT8),
        ],
        {"x": (FLOAT, ["N", 5])},
        {name: (kind, ["N", 5]) for name, kind in
         {"positive": TensorProto.BOOL, "small": TensorProto.INT8, "byte": TensorProto.UINT8}.items()},
        {"zero": np.array(0, np.float32)},
    )  # fmt: skip
    batch = {"x": np.random.default_rng(0).standard_normal((4, 5), dtype=np.float32)}
    (answer,) = built(model).answer(batch)
    for name, want in Reference(model)(batch).items():
        np.testing.assert_array_equal(answer[name], want)
        assert answer[name].dtype == want.dtype


@pytest.mark.parametrize("kind", [TensorProto.INT8, TensorProto.UINT8])
def test_bytes_into_a_network(kind: int, built: Build) -> None:
    model = build(
        [helper.make_node("Cast", ["x"], ["f"], to=FLOAT), helper.make_node("MatMul", ["f", "W"], ["y"])],
        {"x": (kind, ["N", 6])},
        {"y": (FLOAT, ["N", 3])},
        {"W": np.random.default_rng(0).standard_normal((6, 3), dtype=np.float32)},
    )
    limits = np.iinfo(helper.tensor_dtype_to_np_dtype(kind))
    batch = {"x": np.random.default_rng(1).integers(limits.min, limits.max, (4, 6), limits.dtype, endpoint=True)}
    np.testing.assert_allclose(built(model).answer(batch)[0]["y"], Reference(model)(batch)["y"], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("kind", [TensorProto.INT8, TensorProto.UINT8])
def test_small_whole_numbers_wrap_as_the_model_says(kind: int, built: Build) -> None:
    """OpenVINO 2026.4 alone gives 127 for 100 + 100 in INT8; the model says -56."""
    model = zoo.elementwise(kind)
    limits = np.iinfo(helper.tensor_dtype_to_np_dtype(kind))
    rng = np.random.default_rng(1)
    spec = [value.name for value in model.graph.input]
    batch = {name: rng.integers(limits.min, limits.max, (40, 4), limits.dtype, endpoint=True) for name in spec}
    np.testing.assert_array_equal(built(model).answer(batch)[0]["y"], Reference(model)(batch)["y"])


def test_the_manifest_says_how_large_whole_numbers_may_be(built: Build) -> None:
    """OpenVINO's CPU engine cuts INT64 to 32 bits; sums of two are right below 2**30."""
    manifest = built(zoo.elementwise(TensorProto.INT64)).manifest
    assert [spec.integer_bits for spec in manifest.inputs] == [30, 30]
    assert any("2**30" in note for note in manifest.notes)


def test_whole_numbers_that_are_right_have_no_limit(built: Build) -> None:
    assert built(zoo.elementwise(TensorProto.INT32)).manifest.inputs[0].integer_bits == 63


def test_token_numbers_are_bounded_by_what_the_engine_can_hold(built: Build) -> None:
    """ONNX Runtime refuses a token beyond its table; OpenVINO would read 2**40 as 0."""
    assert built(zoo.tokens()).manifest.inputs[0].integer_bits == 31


def test_double_precision_is_said_to_be_computed_in_single(built: Build) -> None:
    assert "FP64 tensors are computed in FP32" in built(zoo.elementwise(TensorProto.DOUBLE)).manifest.notes


def test_a_scalar_input_is_served(built: Build) -> None:
    model = zoo.NOT_BATCHED["a scalar input"][0]()
    batch = {"x": np.ones((2, 8), np.float32), "t": np.array(3, np.float32)}
    np.testing.assert_array_equal(built(model).answer(batch)[0]["y"], np.full((2, 8), 3, np.float32))


def external() -> onnx.ModelProto:
    model = linear()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret.bin")
    return model


def external_in_a_branch() -> onnx.ModelProto:
    stored = numpy_helper.from_array(np.zeros(4, np.float32), "hidden")
    stored.ClearField("raw_data")
    stored.data_location = TensorProto.EXTERNAL
    stored.external_data.add(key="location", value="weights.bin")
    value = helper.make_tensor_value_info("b", FLOAT, [4])
    branch = helper.make_graph([helper.make_node("Identity", ["hidden"], ["b"])], "branch", [], [value], [stored])
    choose = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    inputs = [helper.make_tensor_value_info("c", TensorProto.BOOL, [])]
    graph = helper.make_graph([choose], "g", inputs, [helper.make_tensor_value_info("y", FLOAT, [4])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def unchecked(nodes: list[onnx.NodeProto], output: onnx.ValueInfoProto, kind: int = FLOAT) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("x", kind, ["N", 4])]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    return helper.make_model(helper.make_graph(nodes, "g", inputs, [output]), opset_imports=opsets, ir_version=8)


def sequence_output() -> onnx.ModelProto:
    value = helper.make_tensor_sequence_value_info("y", FLOAT, None)
    return unchecked([helper.make_node("SequenceConstruct", ["x"], ["y"])], value)


Y = helper.make_tensor_value_info("y", FLOAT, ["N", 4])
HOSTILE: dict[str, tuple[Callable[[], onnx.ModelProto | bytes], str]] = {
    "empty": (lambda: b"", "empty; expected an ONNX model"),
    "garbage": (lambda: b"\xff" * 1000, "not an ONNX model"),
    "text": (lambda: b"hello, I am a model\n" * 9, "not an ONNX model"),
    "truncated": (lambda: linear().SerializeToString()[:-40], "not an ONNX model"),
    "no graph": (lambda: onnx.ModelProto(ir_version=8).SerializeToString(), "it has no nodes"),
    "strings": (
        lambda: unchecked([helper.make_node("Identity", ["x"], ["y"])],
                          helper.make_tensor_value_info("y", TensorProto.STRING, ["N", 4]), TensorProto.STRING),
        "element type STRING; expected one of",
    ),
    "external data": (external, "keeps its data in another file; expected a single-file model"),
    "external data in a branch": (external_in_a_branch, "keeps its data in another file"),
    "a sequence": (sequence_output, "is not a tensor"),
    "unknown operator": (lambda: unchecked([helper.make_node("Frobnicate", ["x"], ["y"])], Y), "Frobnicate"),
    "custom domain": (
        lambda: unchecked([helper.make_node("Magic", ["x"], ["y"], domain="com.example")], Y), "Magic",
    ),
    "undefined value": (lambda: unchecked([helper.make_node("Relu", ["nowhere"], ["y"])], Y), "nowhere"),
    "no inputs": (
        lambda: build([helper.make_node("Identity", ["c"], ["y"])], {}, {"y": (FLOAT, [2])},
                      {"c": np.zeros(2, np.float32)}),
        "no inputs; expected at least one",
    ),
    "a rank that is not declared": (
        lambda: helper.make_model(
            helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g",
                              [helper.make_tensor_value_info("x", FLOAT, None)], [Y]),
            opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
        ),
        "no declared rank; export the model with input shapes",
    ),
    "a future opset": (
        lambda: helper.make_model(
            helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g",
                              [helper.make_tensor_value_info("x", FLOAT, ["N", 4])], [Y]),
            opset_imports=[helper.make_opsetid("", 999)], ir_version=8,
        ),
        "999",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_wrong_sources_are_refused_with_what_was_expected(name: str, built: Build, tmp_path: Path) -> None:
    make, said = HOSTILE[name]
    with pytest.raises(ModelRefused) as refused:
        built(make())
    message = str(refused.value)
    assert said in message
    assert len(message) < 1000
    assert str(tmp_path) not in message
    assert not list((tmp_path / "cache").glob("*/manifest.json")), "nothing is published"


def test_the_plan_is_keyed_by_the_bytes_that_were_compiled(tmp_path: Path) -> None:
    """A source that is replaced during the build must not lend its name to another model's engine."""
    source, cache = tmp_path / "model.onnx", PlanCache(tmp_path / "cache")
    source.write_bytes(linear().SerializeToString())

    def replace(stage: str, share: float) -> None:
        if stage == "prove":
            source.write_bytes(linear(scale=2).SerializeToString())

    manifest = compile_into(cache, source, progress=replace)
    source.write_bytes(linear().SerializeToString())
    assert compile_into(cache, source).key == manifest.key


def test_a_build_reports_its_stages(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(linear().SerializeToString())
    stages: list[str] = []
    started = time.monotonic()
    manifest = compile_into(PlanCache(tmp_path / "cache"), source, lambda stage, share: stages.append(stage))
    assert stages == [
        "guard", "read", "rewrite", *CANONICAL_PASSES, "compare", "image inputs", "widen halves", "prove", "measure",
        "compile", "check", "publish",
    ]  # fmt: skip
    percents = [state.STAGES[stage] for stage in stages]
    assert percents == sorted(percents), "as a server shows them"
    assert 0 < manifest.build_s <= time.monotonic() - started + 0.01
    assert {timing.streams for timing in manifest.stream_timings} >= {manifest.streams}
