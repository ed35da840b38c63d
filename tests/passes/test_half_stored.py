"""Weights in half precision on a CPU: half the bytes in file and blob, and FP32 answers of the rounded weights."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import openvino as ov
import pytest
from onnx import numpy_helper

from engines.agreement import first_difference
from engines.canonical import canonical
from engines.legality import Verifier
from engines.passes.half import to_half
from engines.passes.stored_half import FEWEST, store_half
from engines.reference import Arrays, Reference
from engines.runtime.openvino import core
from engines.targets import openvino as target
from engines.targets.openvino_half import keep_halves
from engines.targets.openvino_profile import layers_of
from engines.verify import agreement_bound, rounding_bound
from tests.passes.answers import rows_of
from tests.passes.halves import HALF, mlp
from tests.passes.networks import encoder, light, recurrent
from tests.support.onnx_models import FLOAT, build

node = onnx.helper.make_node
F32 = np.float32
RNG = np.random.default_rng(0)


def stored(model: onnx.ModelProto) -> onnx.ModelProto:
    half, note = store_half(model)
    Verifier(model, None).verify_form("stored half", model, half)
    onnx.checker.check_model(half, full_check=True)
    assert "in half precision" in note
    return half


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the same weights as FP32 tensors."""
    half = {tensor.name: tensor for tensor in stored(model).graph.initializer if tensor.data_type == HALF}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if f"{tensor.name}.half" in half:
            wide = numpy_helper.to_array(half[f"{tensor.name}.half"]).astype(F32)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    return copy


def compiled(model: onnx.ModelProto, *, keeps: bool) -> tuple[bytes, ov.CompiledModel]:
    """Its blob, and what a server makes of that."""
    graph = target.read_model(model) if keeps else core().read_model(model.SerializeToString())
    blob = target.export(target.compile_model(graph, 1, 2))
    return blob, target.reimported(blob, 1, 2)


def off(got: np.ndarray, want: np.ndarray) -> float:
    """Of the largest answer. ONNX Runtime packs stored weights, and adds up in another order then."""
    return float(np.abs(got - want).max() / np.abs(want).max())


def of_many_numbers() -> list[tuple[str, onnx.ModelProto, Arrays]]:
    resnet, _ = canonical(light("squeezenet"))
    transformer, _ = canonical(encoder(width=128, opset=18))
    wide = mlp({"V": RNG.standard_normal((256, 512), dtype=F32), "b": RNG.standard_normal(512, dtype=F32),
                "W": RNG.standard_normal((512, 256), dtype=F32), "c": RNG.standard_normal(256, dtype=F32)})  # fmt: skip
    return [
        ("cnn", resnet, rows_of(resnet)[0]), ("transformer", transformer, {"x": RNG.integers(0, 50, (2, 9))}),
        ("mlp", wide, {"x": RNG.standard_normal((3, 256), dtype=F32)}),
    ]  # fmt: skip


@pytest.mark.parametrize(("model", "row"), [case[1:] for case in of_many_numbers()], ids=["cnn", "transformer", "mlp"])
def test_a_blob_is_half_as_large_and_answers_as_the_rounded_weights_do(model: onnx.ModelProto, row: Arrays) -> None:
    half = stored(model)
    assert len(half.SerializeToString()) < 0.55 * len(model.SerializeToString())
    names = [value.name for value in model.graph.output]
    (whole, _), (blob, engine), (folded, plain) = (
        compiled(model, keeps=False), compiled(half, keeps=True), compiled(half, keeps=False)
    )  # fmt: skip
    assert len(blob) < 0.6 * len(whole)
    assert len(folded) > 0.9 * len(whole), "else the graph of OpenVINO need not be changed any more"
    assert first_difference(target.runner(engine, names), Reference(half), [row], agreement_bound(model)) == ""
    kept, wide = target.runner(engine, names)(row), target.runner(plain, names)(row)
    for name in names:
        np.testing.assert_array_equal(kept[name], wide[name], err_msg="how they are stored changes no value")


def test_the_reference_computes_with_the_rounded_weights() -> None:
    for _, model, row in of_many_numbers():
        want, got, exact = (Reference(one)(row) for one in (rounded(model), stored(model), model))
        for name, array in want.items():
            assert off(got[name], array) <= rounding_bound(model) < off(exact[name], array)


def test_the_same_kernels_run() -> None:
    """In FP32, so it is as fast. The plugin says fp16 of such a layer's precision, which is that of its weights."""
    _, model, row = of_many_numbers()[0]
    fp32, half = compiled(model, keeps=False)[1], compiled(stored(model), keeps=True)[1]
    for engine in (fp32, half):
        target.filled_requests(engine, row, 1)
    kernels = [
        [(layer.op_type, layer.kernel) for layer in layers_of(engine, target.read_model(model))]
        for engine in (fp32, half)
    ]
    assert kernels[0] == kernels[1]
    assert [kernel[-3:] for op_type, kernel in kernels[1] if op_type == "Convolution"] == ["f32"] * 26


def test_the_weights_are_those_of_the_half_graph() -> None:
    for model in (canonical(light("squeezenet"))[0], canonical(encoder(opset=18))[0], canonical(recurrent("LSTM"))[0]):
        here = {t.name: t for t in stored(model).graph.initializer if t.data_type == HALF}
        there = {t.name: t for t in to_half(model)[0].graph.initializer if t.data_type == HALF}
        assert here
        assert all(there[name] == tensor for name, tensor in here.items())


def test_weights_of_a_layer_with_lengths_are_stored_in_half_all_the_same() -> None:
    model, _ = canonical(recurrent("LSTM", hidden=16, with_lengths=True))
    kinds = Counter(tensor.data_type for tensor in stored(model).graph.initializer)
    assert kinds[HALF] >= 2
    row = {"x": RNG.standard_normal((6, 2, 3), dtype=F32), "lengths": np.array([6, 2], np.int32)}
    got, want = (Reference(one(model))(row)["y"] for one in (stored, rounded))
    assert off(got, want) <= rounding_bound(model)


def test_small_kept_and_unfit_tensors_stay() -> None:
    large = RNG.standard_normal((16, 16), dtype=F32)
    nodes = [
        node("MatMul", ["x", "W"], ["a"], "one"), node("MatMul", ["a", "L"], ["b"], "two"),
        node("MatMul", ["b", "K"], ["c"], "three"), node("Add", ["c", "few"], ["y"], "four"),
    ]  # fmt: skip
    constants = {"W": large, "L": large * F32(1e6), "K": large, "few": large[0]}
    model = build(nodes, {"x": (FLOAT, ["N", 16])}, {"y": (FLOAT, ["N", 16])}, constants, 21)
    assert large.size == FEWEST
    done, note = store_half(model, {"three"})
    assert {t.name: t.data_type for t in done.graph.initializer} == {
        "W.half": HALF,
        "L": FLOAT,
        "K": FLOAT,
        "few": FLOAT,
    }
    assert note == "1 tensors, 33% of all FP32 weights, are stored in half precision"
    assert store_half(model, {"one", "three"}) == (model, "no weights are stored in half precision")


def test_constants_that_are_no_halves_stay_in_openvino_too() -> None:
    graph = target.read_model(mlp({name: RNG.standard_normal(shape, dtype=F32) for name, shape in
                                   {"V": (32, 32), "b": (32,), "W": (32, 32), "c": (32,)}.items()}))  # fmt: skip
    before = Counter((op.get_type_name(), str(op.get_element_type())) for op in graph.get_ops())
    assert keep_halves(graph) == 0
    assert Counter((op.get_type_name(), str(op.get_element_type())) for op in graph.get_ops()) == before
