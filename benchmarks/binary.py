"""3x3 convolutions of signs on one thread: ours beside FP32, INT8 and other binary ones, and their products alone.

Each instruction set in a process of its own, which caps all runtimes alike. They take turns of a few runs, the best of
each counts: within a network, too, a layer does not find the caches as another runtime has left them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.binary_plot import write_plot
from benchmarks.capped import KERNELS, best_us, caps, in_child, request
from benchmarks.report import RESULTS

__all__ = ["run"]

SHAPES = ((56, 64), (28, 128), (14, 256), (7, 512))
"""Height and width, channels in and out."""
RUNS, REPEATS = 100, 5
COMMAND = "make bench-binary"
BOUND = 256
"""Multiply-accumulates a cycle of looking up one pixel at a time with AVX2, two shuffles a cycle."""
_OURS = ("floats", "bits")
_GOALS = {56: ">= 8x FP32, >= 2x BinaryConvolution", 28: ">= 10x FP32, >= 2x BinaryConvolution"}


def run() -> dict[str, Any]:
    """Times in us, and multiply-accumulates a cycle, by instruction set, shape and runtime."""
    found = {cap: in_child("benchmarks.binary", cap) for cap in caps()}
    kinds = (_floats_row, _bits_row, _product_row)
    rows = [row(cap, shape, found[cap][str(shape[0])]) for cap in found for row in kinds for shape in SHAPES]
    write_plot(RESULTS / "binary.svg", found, KERNELS)
    return {"rows": rows, "measured": found}


def _row(what: str, measured: str, goal: str) -> dict[str, str]:
    return {
        "what": f"3x3 convolution of signs, {what}, one thread",
        "measured": measured,
        "goal": goal,
        "command": COMMAND,
    }


def _floats_row(cap: str, shape: tuple[int, int], found: dict[str, Any]) -> dict[str, str]:
    size, channels = shape
    ours, best = found["best_us"]["floats"], found["best_us"]
    others = ", ".join(f"{best[name] / ours:.1f}x {name}" for name in best if name not in _OURS)
    goal = _GOALS.get(size, _GOALS[28]) if cap == "AVX2" else "-"
    return _row(f"{size}x{size}x{channels}, floats in and out, {KERNELS[cap]}", f"{ours:.0f} us: {others}", goal)


def _bits_row(cap: str, shape: tuple[int, int], found: dict[str, Any]) -> dict[str, str]:
    size, channels = shape
    ours, floats = found["best_us"]["bits"], found["best_us"]["OpenVINO FP32"]
    measured = f"{ours:.0f} us: {floats / ours:.1f}x OpenVINO FP32"
    goal = ">= 12x FP32" if cap == "AVX2" else "-"
    return _row(f"{size}x{size}x{channels}, bits in and out, {KERNELS[cap]}", measured, goal)


def _product_row(cap: str, shape: tuple[int, int], found: dict[str, Any]) -> dict[str, str]:
    size, channels = shape
    rate = found["product"]
    measured = f"{rate:.0f} multiply-accumulates a cycle, {100 * rate / BOUND:.0f} % of {BOUND}"
    goal = f">= 65 % of {BOUND}" if cap == "AVX2" else "-"
    return _row(f"{size}x{size}x{channels}, the product alone, {KERNELS[cap]}", measured, goal)


def _measure(kernel: str) -> dict[str, Any]:
    """In the child: the best time in us of each, and the rate of the product, by height."""
    from engines.plugins.native import Native

    native = Native()
    native.pin(kernel)
    return {
        str(size): {
            "best_us": best_us(_runners(size, channels), RUNS, REPEATS),
            "product": round(native.product_rate(kernel, size * size, channels, 9 * channels // 32, RUNS), 1),
        }
        for size, channels in SHAPES
    }


def _runners(size: int, channels: int) -> dict[str, Callable[[], Any]]:
    import onnxruntime as ort

    from engines.targets import openvino as target
    from tests.plugins.binary_networks import Network

    made = Network()
    signed = made.model(made.conv(made.sign("x"), channels, channels, pads=[1, 1, 1, 1]), channels, size)
    x = np.random.default_rng(0).standard_normal((1, channels, size, size)).astype(np.float32)
    plain = Network()
    floats = plain.model(plain.conv("x", channels, channels, pads=[1, 1, 1, 1]), channels, size)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(floats.SerializeToString(), options, providers=["CPUExecutionProvider"])
    graphs = {
        "floats": target.read_model(signed), "OpenVINO FP32": target.read_model(floats),
        "OpenVINO INT8": target.read_model(_int8(floats, x)), "OpenVINO BinaryConvolution": _binary(size, channels),
    }  # fmt: skip
    for graph in graphs.values():
        graph.reshape(x.shape)  # of BinaryConvolution it is fixed, too
    runners = {name: request(graph, x) for name, graph in graphs.items()}
    bits = np.random.default_rng(0).integers(-(2**31), 2**31, (1, size, size, channels // 32)).astype(np.int32)
    return {
        **runners,
        "bits": request(_to_bits(size, channels), bits),
        "ONNX Runtime FP32": lambda: session.run(None, {"x": x}),
    }


def _to_bits(size: int, channels: int) -> Any:
    """The layer between two others: bits in and out."""
    from onnx import TensorProto, helper, numpy_helper

    from engines.plugins.ops import DOMAIN, VERSION, ConvAttributes
    from engines.runtime.openvino import core

    own, words, rng = ConvAttributes(channels=channels, pads=(1, 1, 1, 1)), channels // 32, np.random.default_rng(0)
    stored = {
        "w": rng.integers(-(2**31), 2**31, (channels, 3, 3, words)).astype(np.int32),
        "t": rng.integers(-50, 50, channels).astype(np.int32), "f": np.zeros(words, np.int32),
    }  # fmt: skip
    node = helper.make_node("BinaryThreshold2d", ["x", *stored], ["y"], domain=DOMAIN, **own.values())
    infos = [helper.make_tensor_value_info(name, TensorProto.INT32, [1, size, size, words]) for name in "xy"]
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph([node], "g", infos[:1], infos[1:], tensors)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, VERSION)]
    return core().read_model(helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString())


def _int8(model: Any, x: np.ndarray) -> Any:
    from engines.passes.quantize import quantize
    from engines.passes.signed import sign_activations

    return sign_activations(quantize(model, [{"x": x}], 1))[0]


def _binary(size: int, channels: int) -> Any:
    """OpenVINO's own operator, and the signs that it takes."""
    import openvino as ov
    from openvino import opset1

    x = opset1.parameter([1, channels, size, size], np.float32, name="x")
    zero, minus, plus = (np.full((1, 1, 1, 1), value, np.float32) for value in (0, -1, 1))
    signs = opset1.fake_quantize(x, zero, zero, minus, plus, 2)
    bits = np.random.default_rng(0).integers(0, 2, channels * channels * 9)
    packed = ov.op.Constant(ov.Type.u1, ov.Shape([channels, channels, 3, 3]), bits.tolist())
    node = opset1.binary_convolution(signs, packed, [1, 1], [1, 1], [1, 1], [1, 1], "xnor-popcount", 0.0)
    return ov.Model([node], [x])


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1])))
