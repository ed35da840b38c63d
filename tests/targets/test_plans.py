"""Plans of TensorRT-RTX for GPUs that are not here: of every kind of network, in every precision. None is run."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from engines.canonical import canonical
from engines.errors import ModelRefused
from engines.frontend.onnx import tensor_specs
from engines.passes.dynamic_batch import with_batch_axes
from engines.passes.half import to_half
from engines.passes.quantize import Quantizer
from engines.passes.residual import free_residuals
from engines.passes.signed import sign_activations
from engines.passes.split_projection import split_projections
from engines.reference import Arrays, Reference
from engines.samples import find_sampler
from engines.targets.tensorrt_options import BuiltPlan, PlanOptions
from engines.targets.tensorrt_process import build_apart
from engines.targets.tensorrt_rules import graph_counts, refuse_for_tensorrt
from tests.passes.networks import encoder, light, recurrent
from tests.support.onnx_models import FLOAT, build

SMS = (80, 86, 89, 120)
CNN = Path(__file__).parents[2] / "model_repo" / "fashion_cnn" / "1" / "model.onnx"
ROWS = 8
CNNS = ("bvlc_alexnet", "vgg19", "inception_v1", "resnet50", "densenet121", "shufflenet", "squeezenet")
NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    **{name: functools.partial(light, name) for name in CNNS},
    "sample CNN": lambda: onnx.load(CNN),
    "LSTM": lambda: recurrent("LSTM", "forward", hidden=32),
    "BiLSTM": lambda: recurrent("LSTM", hidden=32),
    "GRU": lambda: recurrent("GRU", "forward", hidden=32),
    "encoder": lambda: encoder(width=64),
}
HEAVY = frozenset({"bvlc_alexnet", "vgg19", "inception_v1", "resnet50", "densenet121", "squeezenet"})
"""Their size is that of their weights; of small ones, it is that of the program."""


def forms(model: onnx.ModelProto, rows: list[Arrays]) -> dict[str, onnx.ModelProto]:
    """The graphs of one network for a GPU, by precision."""
    split, _ = split_projections(model)
    quantized = Quantizer(split, rows, len(rows), ["mean_minmax"]).quantized("mean_minmax", overflow_fix=False)
    int8 = free_residuals(sign_activations(quantized)[0])[0]
    return {"fp32": model, "fp16": to_half(model)[0], "int8": int8, "mixed": to_half(int8)[0]}


def plan_of(graph: onnx.ModelProto, proven: Callable[..., tuple[int, ...]], sms: tuple[int, ...] = SMS) -> BuiltPlan:
    ranges = {}
    for tensor in tensor_specs(graph)[0]:
        if -1 in tensor.shape:
            sample = proven(tensor)
            ranges[tensor.name] = tuple(
                tuple(size if size != -1 else of(usual) for size, usual in zip(tensor.shape, sample, strict=True))
                for of in (lambda usual: 1, lambda usual: usual, lambda usual: 4 * usual)
            )
    data, built = build_apart("tensorrt-rtx", graph, PlanOptions(profiles=(ranges,) if ranges else (), sms=sms))
    assert data[:4] == b"vtrt"
    assert built.size_bytes == len(data)
    return built


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_built_in_every_precision(name: str) -> None:
    """What the parser made of the graph is what the graph says, operator by operator and datatype by datatype."""
    source = NETWORKS[name]()
    reference = Reference(source)
    model, _ = canonical(source, reference)
    sampler = find_sampler(tensor_specs(model)[0], {}, reference, [50])
    plans = {}
    for precision, graph in forms(model, [sampler.draw(seed) for seed in range(ROWS)]).items():
        refuse_for_tensorrt(graph)
        batched = with_batch_axes(graph, {tensor_specs(graph)[0][0].name: 0}) if name in CNNS else graph
        built = plans[precision] = plan_of(batched, sampler.shape)
        asked = graph_counts(batched)
        assert asked == {key: count for key, count in built.network.items() if key in asked or "QUANT" in key}
        assert (built.version, built.sms) == ("1.7.1.116", SMS)
    halves = [key for key in plans["fp16"].network if key.endswith(" FP16")]
    assert halves, plans["fp16"].network
    assert not any("FP16" in key or "INT8" in key for key in plans["fp32"].network)
    for precision in ("int8", "mixed"):
        assert plans[precision].network["QUANTIZE INT8"] >= 1
    if name in HEAVY:
        sizes = {precision: built.size_bytes for precision, built in plans.items()}
        assert sizes["fp16"] < 0.7 * sizes["fp32"]
        assert sizes["int8"] < 0.8 * sizes["fp32"]
        assert sizes["mixed"] < 0.8 * sizes["fp32"]


@pytest.mark.parametrize("sm", SMS)
def test_a_plan_may_be_for_one_gpu(sm: int) -> None:
    assert plan_of(onnx.load(CNN), lambda tensor: (8, *tensor.shape[1:]), (sm,)).sms == (sm,)


def relu(op: str = "Relu", **attributes: object) -> onnx.ModelProto:
    node = helper.make_node(op, ["x"], ["y"], name="node", **attributes)
    return build([node], {"x": (FLOAT, [1, 4])}, {"y": (FLOAT, [1, 4])}, {}, 21)


def quantized(zero: np.ndarray) -> onnx.ModelProto:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="round"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="back"),
    ]
    stored = {"s": np.array(0.1, np.float32), "z": zero}
    return build(nodes, {"x": (FLOAT, [1, 4])}, {"y": (FLOAT, [1, 4])}, stored, 21)


def test_warnings_of_the_parser_are_errors() -> None:
    """It would clip half of the range of unsigned numbers, and warn."""
    with pytest.raises(ModelRefused, match=r"takes the graph for another: .*UINT8"):
        build_apart("tensorrt-rtx", quantized(np.array(0, np.uint8)), PlanOptions(profiles=(), sms=(86,)))


def test_what_the_parser_refuses_is_said_with_the_node() -> None:
    model = relu()
    model.graph.node[0].op_type, model.graph.node[0].name = "Unheard", "strange"
    with pytest.raises(ModelRefused, match=r"refuses the graph: .*strange"):
        build_apart("tensorrt-rtx", model, PlanOptions(profiles=(), sms=(86,)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (PlanOptions(profiles=(), sms=(90,)), "cannot build for SM90; expected some of SM75, SM80"),
        (PlanOptions(profiles=()), "cannot build for no GPU; expected"),
        (PlanOptions(profiles=(), sms=(86,), compatibility="ampere_plus"), "has no hardware compatibility levels"),
    ],
)
def test_what_cannot_be_built_for_is_refused(options: PlanOptions, said: str) -> None:
    with pytest.raises(ModelRefused, match=said):
        build_apart("tensorrt-rtx", relu(), options)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.abort()", "ended by SIGABRT"),
        ("import ctypes; ctypes.string_at(0)", "ended by SIGSEGV"),
        ("import threading; threading.Event().wait()", "did not end within 2 s"),
        ("import sys; sys.exit('out of luck')", "ended with exit code 1: out of luck"),
        ("print('all is well')", "ended with exit code 0"),
    ],
)
def test_a_builder_that_comes_to_a_bad_end_is_reported(code: str, said: str) -> None:
    with pytest.raises(ModelRefused, match=f"the builder of tensorrt-rtx {said}"):
        build_apart(
            "tensorrt-rtx", relu(), PlanOptions(profiles=(), sms=(86,)), command=[sys.executable, "-c", code],
            timeout_s=2,
        )  # fmt: skip


def test_a_real_builder_that_crashes_is_reported() -> None:
    """A stride of 0 makes the parser or the builder end their process, or refuse: either way it is said."""
    weights = numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", strides=[0, 0])
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("y", FLOAT, [1, 1, None, None])], [weights],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with pytest.raises(ModelRefused, match=r"TensorRT|tensorrt-rtx"):
        build_apart("tensorrt-rtx", model, PlanOptions(profiles=(), sms=(86,)))


def test_several_profiles_one_for_each_size_of_a_batch() -> None:
    profiles = tuple({"image": ((rows, 1, 28, 28),) * 3} for rows in (1, 8, 32))
    _, built = build_apart("tensorrt-rtx", onnx.load(CNN), PlanOptions(profiles=profiles, sms=(86,)))
    assert built.size_bytes > 0


def test_progress_is_told_in_rising_shares() -> None:
    shares: list[float] = []
    options = PlanOptions(profiles=({"image": ((1, 1, 28, 28), (8, 1, 28, 28), (32, 1, 28, 28))},), sms=(86,))
    build_apart("tensorrt-rtx", onnx.load(CNN), options, shares.append)
    assert shares
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
